"""UCE: erase the illegal concepts from the cross-attention, in closed form."""

from freezeasguard.commands import DATA, load, model_path, run
from freezeasguard.models.latents import CaseData
from freezeasguard.protections.rivals import protect_by_uce


def main(case: str, arm: str = "uce") -> None:
    params = load(case)
    data = CaseData.load(DATA / "latents" / case)
    protect_by_uce(params, case, arm, model_path(params, case), data, DATA / "protected" / case / arm)


if __name__ == "__main__":
    run(main)
