"""FreezeAsGuard: learn which tensors to freeze (paper, Algorithm 1)."""

from freezeasguard.commands import DATA, load, model_path, run
from freezeasguard.models.latents import CaseData
from freezeasguard.protections.freezeasguard import CONTROLS, protect_by_mask
from freezeasguard.settings.params import arm_granularity


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
