"""The illegal and the legal user fine-tune the model of one arm."""

from freezeasguard.commands import DATA, load, model_path, run
from freezeasguard.models.latents import CaseData
from freezeasguard.users.adapt import adapt_cell


def main(case: str, arm: str) -> None:
    params = load(case)
    data = CaseData.load(DATA / "latents" / case)
    protected = DATA / "protected" / params.protected(case, arm)
    out = DATA / "adapted" / case / arm
    adapt_cell(params, case, arm, model_path(params, case), protected, data, out)


if __name__ == "__main__":
    run(main)
