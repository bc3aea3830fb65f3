"""IMMA: immunise the attention projections against the illegal side's fine-tuning."""

from freezeasguard.commands import DATA, load, model_path, run
from freezeasguard.models.latents import CaseData
from freezeasguard.protections.rivals import protect_by_imma


def main(case: str, arm: str = "imma") -> None:
    params = load(case)
    data = CaseData.load(DATA / "latents" / case)
    protect_by_imma(params, model_path(params, case), data, DATA / "protected" / case / arm)


if __name__ == "__main__":
    run(main)
