"""A user's fine-tuning as a stage runs it: what is loaded, and what is told from the published weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from freezeasguard.models.diffusion import load_unet, stored_tensors
from freezeasguard.models.latents import LatentSet
from freezeasguard.models.protected import Protected, write_for
from freezeasguard.settings.users import Finetuning
from freezeasguard.users import adapt

MODEL = Path(__file__).parent.parent / "data/models/tiny-1.5"
EDITED = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize("steps", [0, 1])
def test_a_user_loads_one_unet_and_writes_what_differs_from_the_published_one(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Path] = []

    def load(model: Path) -> Any:
        loads.append(model)
        return load_unet(model)

    monkeypatch.setattr(adapt, "load_unet", load)
    monkeypatch.setattr(adapt, "CHECKPOINTS", tmp_path)
    published = stored_tensors(MODEL)
    frozen = frozenset(published) - {"conv_out.bias"}
    edited = {EDITED: published[EDITED].float() + 1, "conv_in.bias": published["conv_in.bias"].float()}
    write_for(published, tmp_path / "p", Protected("uce", frozen, edited))
    draw = torch.Generator().manual_seed(0)
    data = LatentSet(torch.randn(2, 2, 8, 16, 16, generator=draw), torch.randn(2, 6, 96, generator=draw))
    config = Finetuning(steps=steps, batch_size=2, lr=1e-3)
    settings = {"seed": 0, "device": "cpu", "checkpoint_name": "c"}
    adapt.adapt_and_save("illegal", MODEL, tmp_path / "p", data, config, tmp_path, **settings)
    assert loads == [MODEL]
    changed = load_file(tmp_path / "illegal.safetensors")
    assert changed.keys() == {EDITED} | ({"conv_out.bias"} if steps else set())
    assert torch.equal(changed[EDITED], edited[EDITED]) and changed[EDITED].dtype == torch.float32
    record = json.loads((tmp_path / "illegal.json").read_text())
    assert len(record["losses"]) == steps and record["n_changed"] == len(changed)
