"""Random-rho and the other masks that no learning made: freeze blindly, or by a rule of thumb."""

from freezeasguard.diffusion import stored_tensors
from freezeasguard.protect_blind import protect_blindly
from freezeasguard.stage import DATA, load, model_path, run


def main(case: str, arm: str = "random") -> None:
    params = load(case)
    tensors = stored_tensors(model_path(params, case))
    protect_blindly(tensors, arm, DATA / "protected" / case / arm, params.arm_rho(arm), params.seed)


if __name__ == "__main__":
    run(main)
