"""FreezeAsGuard: learn which tensors to freeze (paper, Algorithm 1)."""

from freezeasguard.data.latents import CaseData
from freezeasguard.protect import protect_by_mask
from freezeasguard.stage import DATA, load, model_path, run


def main(case: str, arm: str = "freezeasguard") -> None:
    params = load(case)
    data = CaseData.load(DATA / "latents" / case)
    protect_by_mask(
        params,
        params.mask,
        model_path(params, case),
        data,
        DATA / "finetuned" / case,
        DATA / "protected" / case / arm,
        params.arm_rho(arm),
    )


if __name__ == "__main__":
    run(main)
