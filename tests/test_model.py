"""The shipped miniature model: its layout, its size, its gates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from freezeasguard.diffusion import load_unet, load_vae
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.metrics.recogniser import Recogniser
from freezeasguard.miniature.gates import read_gates
from freezeasguard.miniature.gates_figures import figure_gates

ROOT = Path(__file__).parent.parent
MODEL, SCORERS = ROOT / "data/models/tiny-1.5", ROOT / "data/models/scorers"


def test_stored_gates_hold() -> None:
    gates = read_gates(MODEL)
    assert {g.name for g in gates} >= {"vae_auc_ratio", "prompt_retrieval", "no_knowledge", "adaptation_gain"}
    assert {g.name for g in gates} >= {"style_vae_auc_ratio", "explicit_auc_vae", "orl_auc_vae"}
    assert [g.name for g in gates if g.passed is False] == []


def test_figure_gates_measured_afresh() -> None:
    assert [g.name for g in figure_gates(MODEL, SCORERS) if g.passed is False] == []


def test_686_tensors_and_size() -> None:
    assert len(list(load_unet(MODEL).parameters())) == 686
    total = sum(p.stat().st_size for folder in (MODEL, SCORERS) for p in folder.rglob("*") if p.is_file())
    assert total <= 25 * 2**20


def test_plain_pipeline_loads_and_draws() -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(MODEL)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    image = pipeline("a photo of a person", num_inference_steps=2, generator=generator).images[0]
    assert image.size == (64, 64)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(FreezeAsGuardError, match="unet"):
        load_unet(tmp_path)
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (tmp_path / part).mkdir()
    with pytest.raises(FreezeAsGuardError, match=r"vae/\*\.safetensors"):
        load_vae(tmp_path)
    with pytest.raises(FreezeAsGuardError, match="recogniser.safetensors is missing"):
        Recogniser.load(tmp_path)
