"""The model that nothing protects: where full fine-tuning starts, and the pre-trained arm stays."""

from freezeasguard.diffusion import load_unet
from freezeasguard.protect import protect_nothing
from freezeasguard.stage import DATA, load, model_path, run


def main(case: str) -> None:
    params = load(case)
    unet = load_unet(model_path(params, case))
    protect_nothing(unet, DATA / "protected" / case / "full", "full")


if __name__ == "__main__":
    run(main)
