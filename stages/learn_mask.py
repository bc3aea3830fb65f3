"""FreezeAsGuard: learn which tensors to freeze (paper, Algorithm 1)."""

from freezeasguard.config import arm_granularity
from freezeasguard.data.latents import CaseData
from freezeasguard.protect import CONTROLS, protect_by_mask
from freezeasguard.stage import DATA, load, model_path, run


def main(case: str, arm: str = "freezeasguard") -> None:
    params = load(case)
    granularity = arm_granularity(arm)
    mask = params.mask if granularity == "tensor" else params.mask.model_copy(update={"granularity": granularity})
    protect_by_mask(
        params,
        mask,
        model_path(params, case),
        CaseData.load(DATA / "latents" / case),
        DATA / "finetuned" / case,
        DATA / "protected" / case / arm,
        params.arm_rho(arm),
        arm if arm in CONTROLS else None,
    )


if __name__ == "__main__":
    run(main)
