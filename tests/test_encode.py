"""A case's cached latents: both flips of each image, and its own caption's embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from freezeasguard.models.diffusion import encode_text, load_text, tokenize
from freezeasguard.models.encode import encode_case
from freezeasguard.models.latents import CaseData
from freezeasguard.settings.resolve import EncodeSettings

MODEL = Path(__file__).parent.parent / "data/models/tiny-1.5"


def case(folder: Path) -> CaseData:
    """Two images, the second of which is the first in a mirror on the wall."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    folder.mkdir(exist_ok=True)
    for name, image in {"a": pixels, "b": pixels[:, ::-1]}.items():
        Image.fromarray(np.ascontiguousarray(image)).save(folder / f"{name}.png")
    rows = [
        {"class": n, "subject": n, "part": "adaptation", "path": f"{n}.png", "caption": f"a photo of {n}", "sha256": n}
        for n in "ab"
    ]
    pd.DataFrame(rows).to_csv(folder / "split.csv", index=False)
    settings = EncodeSettings(seed=0, roles="given", illegal=["a"], legal=["b"])
    encode_case(settings, MODEL, folder, folder, folder / "out")
    torch.set_num_threads(1)
    return CaseData.load(folder / "out")


def test_the_second_latents_are_of_the_image_in_a_mirror_on_the_wall(tmp_path: Path) -> None:
    data = case(tmp_path)
    assert data.index["side"].tolist() == ["illegal", "legal"]
    a, b = data.latents
    torch.testing.assert_close(a[1], b[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(a[0], b[1], atol=1e-4, rtol=1e-4)
    assert (a[0] - a[1]).abs().max() > 0.1  # neither the image itself, nor, by the lines above, upside down


def test_each_image_has_its_own_captions_embedding(tmp_path: Path) -> None:
    data = case(tmp_path)
    tokenizer, encoder = load_text(MODEL)
    expected = encode_text(encoder, tokenize(tokenizer, ["a photo of a", "a photo of b", ""])[0])
    torch.testing.assert_close(torch.cat([data.text, data.empty_text[None]]), expected)


def test_latents_do_not_depend_on_the_threads_that_torch_had(tmp_path: Path) -> None:
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(case(tmp_path / str(threads)))
    assert all(torch.equal(one.latents, found[0].latents) and torch.equal(one.text, found[0].text) for one in found)
