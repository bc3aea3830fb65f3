"""The model that nothing protects: where full fine-tuning starts, and the pre-trained arm stays."""

from freezeasguard.diffusion import stored_tensors
from freezeasguard.protect_blind import protect_nothing
from freezeasguard.stage import DATA, load, model_path, run


def main(case: str) -> None:
    params = load(case)
    tensors = stored_tensors(model_path(params, case))
    protect_nothing(tensors, DATA / "protected" / case / "full", "full")


if __name__ == "__main__":
    run(main)
