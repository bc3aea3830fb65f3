"""The model that nothing protects: where full fine-tuning starts, and the pre-trained arm stays."""

from freezeasguard.commands import DATA, load, model_path, run
from freezeasguard.models.diffusion import stored_tensors
from freezeasguard.protections.blind import protect_nothing


def main(case: str) -> None:
    params = load(case)
    tensors = stored_tensors(model_path(params, case))
    protect_nothing(tensors, DATA / "protected" / case / "full", "full")


if __name__ == "__main__":
    run(main)
