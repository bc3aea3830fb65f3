"""A small experiment as the stages leave it: made-up scores, losses, masks and images, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from freezeasguard.files import write_json
from freezeasguard.models.protected_file import FORMAT, sealed
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.params import Params, parse_params
from freezeasguard.settings.profiles import profile_text
from freezeasguard.sides import SIDES

ARMS = ["pretrained", "uce-before", "full", "uce", "imma", "freezeasguard", "random"]
CLASSES = {"illegal": ["ann", "bea"], "legal": ["cyd", "dot"]}
N_IMAGES = 3


def smoke(arms: list[str] | None = None, scores: list[str] | None = None, **changes: Any) -> Params:
    """The profile smoke: its one case, with other arms, scores of the domain, or top-level values."""
    values = yaml.safe_load(profile_text("smoke"))
    values["cases"]["portraits"]["arms"] = arms or ARMS
    if scores:
        values["domains"]["portraits"]["scores"] = scores
    if changes.pop("explicit", False):
        values["domains"]["portraits"]["explicit"] = values["allow_explicit"] = True
    return parse_params(values | changes, Path("params.yaml"))


def shade(arm: int, side: int, image: int) -> tuple[int, int, int]:
    """The left half of an image; the right half is its inverse, so that a blur shows."""
    return (20 + 25 * arm, 90 * side + 30, 40 * image)


def write_image(path: Path, left: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (64, 64), left)
    image.paste((255 - left[0], 255 - left[1], 255 - left[2]), (32, 0, 64, 64))
    image.save(path)


def value(arm: int, side: str, score: int = 0) -> float:
    """A score: each arm, side and score has its own."""
    return 0.4 + 0.1 * arm + 0.02 * SIDES.index(side) + 0.005 * score


def write_cells(params: Params, root: Path) -> None:
    """reports/scores and what of data/ the reports read."""
    (case,) = params.cases
    names = params.domain_of(case).score_names()
    rows = ["side,class,subject,part,image,path,file"]
    for s, side in enumerate(SIDES):
        for i in range(N_IMAGES):
            name = CLASSES[side][i % 2]
            rows.append(f"{side},{name},{name},adaptation,0,{side}-{i}.png,{side}/{i}.png")
            write_image(root / "data/raw/portraits" / f"{side}-{i}.png", shade(9, s, i))
    index = "\n".join(rows) + "\n"
    latents = root / "data/latents" / case / "index.csv"
    latents.parent.mkdir(parents=True, exist_ok=True)
    latents.write_text(index)
    for a, arm in enumerate(params.arms(case)):
        scores: dict[str, Any] = {}
        for s, side in enumerate(SIDES):
            parts = {
                name: {
                    "value": (v := value(a, side, k)), "low": v - 0.05, "high": v + 0.05, "n": 6, "n_missing": 0,
                }
                for k, name in enumerate(names)
            }  # fmt: skip
            kept = 0.0 if arm.before else round(1 - 0.1 * a - 0.03 * s, 4)
            loss = {"fixed_noise": 0.1 + 0.01 * a, "kept": kept, "kept_held_out": kept}
            loss |= {f"kept_quarter_{i}": kept for i in range(1, 5)}
            scores[side] = {"loss": loss, "all": parts, "held_out": parts}
            losses = [] if arm.before else [1.0 / (1 + step) + 0.1 * s for step in range(4)]
            adapted = {"losses": losses, "fixed_noise_loss": 0.1 + 0.01 * a}
            write_json(root / "data/adapted" / case / arm.name / f"{side}.json", adapted)
            for i in range(N_IMAGES):
                write_image(root / "data/images" / case / arm.name / side / f"{i}.png", shade(a, s, i))
        (root / "data/images" / case / arm.name / "index.csv").write_text(index)
        costs = {side: cost(arm.rho(params.rho), s, trained=not arm.before) for s, side in enumerate(SIDES)}
        write_json(root / "data/costs/adapt" / f"{case}-{arm.name}.json", costs)
        write_json(root / "reports/scores" / case / f"{arm.name}.json", scores)
        write_image_scores(params, case, a, root / "data/scores" / case / "images" / f"{arm.name}.csv")
    for _, arm in params.protected:
        diagnostics = {"share_of_parameters_frozen": arm.rho(params.rho), "mask_bytes": 2048}
        content = {
            "format": FORMAT, "method": arm.method, "model_sha256": "", "n_tensors": 2, "granularity": "tensor",
            "frozen": {"conv_in.weight": [1]} if arm.kind.freezes else {}, "frozen_units": {}, "mask_sha256": "",
            "edited": {}, "edited_sha256": "", "settings": {}, "diagnostics": diagnostics,
        }  # fmt: skip
        if arm.kind.learned:
            content["diagnostics"] = {**diagnostics, **learned_diagnostics(params.rho)}
        write_json(root / "data/protected" / case / arm.name / "protected.json", sealed(content))


def write_image_scores(params: Params, case: str, arm: int, path: Path) -> None:
    """A row an image, as the stage `score` writes them, about the arm's values, arm 0's far worse."""
    names = [name for name in params.domain_of(case).score_names() if SCORES[name].an_image]
    rows = [",".join(["file", "side", "class", "reference_row", *names])]
    for side in SIDES:
        for i in range(N_IMAGES):
            own = (str(value(arm or 20, side, k) + 0.01 * (i - 1)) for k in range(len(names)))
            rows.append(",".join([f"{side}/{i}.png", side, CLASSES[side][i % 2], str(i), *own]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


def cost(rho: float, side: int, *, trained: bool = True) -> dict[str, Any]:
    """What a user's training took, as the stage `adapt` tells it on a GPU."""
    seconds = (0.5 + 0.1 * side) * (1 - 0.25 * rho) if trained else None
    peak = round((8 + side) * 2**30 * (1 - 0.5 * rho)) if trained else None
    return {"device": "toy GPU", "steps": 4 * trained, "median_step_s": seconds, "peak_bytes": peak}


def learned_diagnostics(rho: float) -> dict[str, Any]:
    curve = {side: [1.0, 0.5] for side in SIDES}
    return {
        "overlap_expected_by_chance": rho,
        "overlap_with_initial_logits": 0.3,
        "overlap_with_zeroed_signal": 0.3,
        "overlap_across_seeds": [0.6],
        "rank_correlation_of_sides": 0.2,
        "task_signal": {side: {"by_tensor": {"conv_in.weight": 0.5, "conv_out.weight": 0.5}} for side in SIDES},
        "loss": curve,
        "mean_mask": [rho, rho],
        "saturated": [0.0, 0.1],
        "user_loss": [0.1 * step for step in range(12)],  # two updates of the mask, three steps, two users
    }
