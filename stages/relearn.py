"""Fine-tune the plain model fully on the mask-learning halves: theta_ft of Algorithm 1."""

from freezeasguard.adapt import relearn_case
from freezeasguard.data.latents import CaseData
from freezeasguard.stage import DATA, load, model_path, run


def main(case: str) -> None:
    params = load(case)
    data = CaseData.load(DATA / "latents" / case)
    relearn_case(params, case, model_path(params, case), data, DATA / "finetuned" / case)


if __name__ == "__main__":
    run(main)
