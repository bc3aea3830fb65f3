"""Fine-tune the plain model fully on the mask-learning halves: theta_ft of Algorithm 1."""

from freezeasguard.commands import DATA, load, model_path, run
from freezeasguard.models.latents import CaseData
from freezeasguard.users.adapt import relearn_case


def main(case: str) -> None:
    params = load(case)
    data = CaseData.load(DATA / "latents" / case)
    relearn_case(params, case, model_path(params, case), data, DATA / "finetuned" / case)


if __name__ == "__main__":
    run(main)
