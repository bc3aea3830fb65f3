"""IMMA: immunise the attention projections against the illegal side's fine-tuning."""

from freezeasguard.data.latents import CaseData
from freezeasguard.protect_baselines import protect_by_imma
from freezeasguard.stage import DATA, load, model_path, run


def main(case: str, arm: str = "imma") -> None:
    params = load(case)
    data = CaseData.load(DATA / "latents" / case)
    protect_by_imma(params, model_path(params, case), data, DATA / "protected" / case / arm)


if __name__ == "__main__":
    run(main)
