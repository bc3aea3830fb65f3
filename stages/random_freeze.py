"""Random-rho and the other masks that no learning made: freeze blindly, or by a rule of thumb."""

from freezeasguard.commands import DATA, load, model_path, run
from freezeasguard.models.diffusion import stored_tensors
from freezeasguard.protections.blind import protect_blindly


def main(case: str, arm: str = "random") -> None:
    params = load(case)
    tensors = stored_tensors(model_path(params, case))
    protect_blindly(tensors, arm, DATA / "protected" / case / arm, params.arm_rho(arm), params.seed)


if __name__ == "__main__":
    run(main)
