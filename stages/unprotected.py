"""The arms that nothing protects: pretrained (never fine-tuned) and full (every tensor trainable)."""

from freezeasguard.diffusion import load_unet
from freezeasguard.protect import protect_nothing
from freezeasguard.stage import DATA, load, model_path, run


def main(case: str) -> None:
    params = load(case)
    unet = load_unet(model_path(params, case))
    for arm in ("pretrained", "full"):
        protect_nothing(unet, DATA / "protected" / case / arm, arm)


if __name__ == "__main__":
    run(main)
