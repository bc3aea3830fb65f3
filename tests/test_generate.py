"""Which images are generated: enough of them, and no two the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from conftest import ToyDenoiser
from freezeasguard.models import generate, protected
from freezeasguard.models.generate import prompt_table
from freezeasguard.models.latents import CaseData
from freezeasguard.models.sampling import image_seed
from freezeasguard.new_case import add_case
from freezeasguard.settings.params import load_params
from freezeasguard.settings.profiles import profile_text
from freezeasguard.settings.resolve import GenerateSettings
from freezeasguard.settings.users import Generate
from freezeasguard.sides import SIDES
from test_new_case import fill

CONFIG = Generate(
    steps=2, guidance_scale=2, prompts_per_side=2, held_out_prompts_per_side=1, images_per_prompt=2, batch_size=2
)


def case_data(captions: list[str]) -> CaseData:
    parts = ["adaptation", "adaptation", "held_out", "mask_learning"]
    rows = [
        {"row": i, "side": "illegal", "class": "a", "subject": "A", "part": part, "path": "", "caption": caption}
        for i, (part, caption) in enumerate(zip(parts, captions, strict=True))
    ]
    return CaseData(pd.DataFrame(rows), torch.zeros(4, 2, 1, 2, 2), torch.zeros(4, 2, 2), torch.zeros(2, 2))


def test_rows_of_one_caption_never_share_their_noise() -> None:
    for captions in (["a photo of A"] * 4, ["a photo of A", "A waves", "a photo of A", "A"], list("wxyz")):
        table = prompt_table(case_data(captions), "illegal", CONFIG)
        seeds = {image_seed(prompt, image, 0) for prompt, image in zip(table["caption"], table["image"], strict=True)}
        assert len(table) == len(seeds) == table["file"].nunique() == 6
        assert sorted(table["reference_row"].unique()) == [0, 1, 2]  # nothing that the mask was learned from


def test_distinct_captions_start_at_image_zero() -> None:
    table = prompt_table(case_data(list("wxyz")), "illegal", CONFIG)
    assert table["image"].tolist() == [0, 1] * 3


def test_a_case_of_few_classes_gets_more_images_a_prompt(tmp_path: Path, monkeypatch) -> None:  # noqa: ANN001
    monkeypatch.chdir(tmp_path)
    for number, side in enumerate(("illegal", "legal")):
        fill(tmp_path / side, 100 * number)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/models").symlink_to(Path(__file__).parent.parent / "data/models")
    Path("params.yaml").write_text(profile_text("tiny"))
    before = yaml.safe_load(Path("params.yaml").read_text())["generate"]
    add_case("mine", {side: tmp_path / side for side in ("illegal", "legal")}, "tiny-1.5", None, 64, True)
    after = load_params(Path("params.yaml")).generate
    assert before["images_per_prompt"] == 1 and after.images_per_prompt * 5 >= 60  # half of ten images are prompts
    assert after.steps == before["steps"] and after.prompts_per_side == before["prompts_per_side"]


def test_prompts_are_dealt_evenly_to_the_classes() -> None:
    data = case_data(list("wxyz"))
    other = data.index.assign(**{"class": "b"})
    index = pd.concat([data.index, other], ignore_index=True)
    both = CaseData(index, data.latents.repeat(2, 1, 1, 1, 1), data.text.repeat(2, 1, 1), data.empty_text)
    table = prompt_table(both, "illegal", CONFIG)
    assert table.groupby(["class", "part"]).size().to_dict() == {
        (c, p): 2 for c in "ab" for p in ("adaptation", "held_out")
    }


def test_each_sides_images_are_of_its_own_model_and_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the red channel the adapted model is to be read, of the green one the prompt."""
    rows = [(side, part) for side in SIDES for part in ("adaptation", "held_out")]
    index = pd.DataFrame(
        [{"row": i, "side": s, "class": s, "part": p, "caption": str(i)} for i, (s, p) in enumerate(rows)]
    )
    text = torch.tensor([0.0, 0.1, 0.2, 0.3])[:, None, None]
    data = CaseData(index, torch.zeros(4, 2, 3, 4, 4), text, torch.zeros(1, 1))
    for side, bias in {"illegal": -1.0, "legal": 1.0}.items():
        save_file({"bias": torch.full((4,), bias)}, tmp_path / f"{side}.safetensors")

    def draw(unet: Any, _: Any, noise: torch.Tensor, prompts: torch.Tensor, *__: Any, **___: Any) -> torch.Tensor:
        images = torch.zeros_like(noise)
        images[:, 0] = unet.bias[0].detach()
        images[:, 1] = prompts[:, 0, :, None]
        return images

    monkeypatch.setattr(protected, "load_unet", lambda _: ToyDenoiser())
    monkeypatch.setattr(generate, "sample", draw)
    monkeypatch.setattr(generate, "decode_latents", lambda _, latents: latents)
    monkeypatch.setattr(generate, "load_scheduler", lambda _: SimpleNamespace(config={}))
    monkeypatch.setattr(generate, "load_vae", lambda _: torch.nn.Identity())
    config = CONFIG.model_copy(update={"batch_size": 3})  # a batch of several prompts
    settings = GenerateSettings(seed=0, generate=config)
    generate.generate_cell(settings, Path(), tmp_path, data, tmp_path / "out", "cell", "cpu", 1)
    made = pd.read_csv(tmp_path / "out/index.csv")
    assert len(made) == 8 and set(made["side"]) == set(SIDES)
    for row in made.itertuples():
        pixel = np.asarray(Image.open(tmp_path / "out" / str(row.file)))[0, 0]
        assert pixel[0] == {"illegal": 0, "legal": 255}[str(row.side)] and str(row.file).startswith(f"{row.side}/")
        assert pixel[1] == pytest.approx((0.1 * row.reference_row + 1) * 127.5, abs=1)
        assert index["side"][row.reference_row] == row.side
