"""A case as `encode` and `generate` leave it, of tiny random images: what scoring reads, without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from freezeasguard.files import write_json
from freezeasguard.models.latents import CaseData
from freezeasguard.sides import SIDES

CLASSES = {"illegal": ("ann", "bea"), "legal": ("cyd", "dot")}
PARTS = ("mask_learning", "adaptation", "held_out", "adaptation", "mask_learning", "adaptation")
SIZE_PX = 4


def write_random(path: Path, rng: np.random.Generator, bias: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.clip(rng.integers(0, 200, (SIZE_PX, SIZE_PX, 3)) + bias, 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_case(root: Path, arms: list[str]) -> CaseData:
    """root/raw, root/images/ARM with its index.csv, root/adapted/ARM; each side and arm is of its own brightness."""
    rng = np.random.default_rng(0)
    rows = [
        {"side": side, "class": name, "subject": name, "part": part, "path": f"{name}{i}.png", "caption": f"{name} {i}"}
        for side in SIDES
        for name in CLASSES[side]
        for i, part in enumerate(PARTS)
    ]
    index = pd.DataFrame(rows).assign(row=range(len(rows)))
    for path, side in zip(index["path"], index["side"], strict=True):
        write_random(root / "raw" / path, rng, bias=50 * SIDES.index(side))
    prompts = index[index["part"] != "mask_learning"].rename(columns={"row": "reference_row"})
    tables = [prompts.assign(image=i, file=[f"{row}-{i}.png" for row in prompts["reference_row"]]) for i in (0, 1)]
    generated = pd.concat(tables)[["file", "side", "class", "part", "caption", "reference_row", "image"]]
    for a, arm in enumerate(arms):
        for file, side in zip(generated["file"], generated["side"], strict=True):
            write_random(root / "images" / arm / file, rng, bias=10 * a + 25 * SIDES.index(side))
        generated.to_csv(root / "images" / arm / "index.csv", index=False)
        for side in SIDES:
            loss = 0.2 - 0.01 * a
            record = {"fixed_noise_loss": loss, "fixed_noise_quarters": [loss] * 4, "held_out_loss": loss}
            write_json(root / "adapted" / arm / f"{side}.json", record)
    n = len(index)
    return CaseData(index, torch.zeros(n, 2, 1, 2, 2), torch.zeros(n, 2, 2), torch.zeros(2, 2))


def read(path: Path) -> np.ndarray:
    """[3, h, w] in -1..1."""
    return np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) / 127.5 - 1
