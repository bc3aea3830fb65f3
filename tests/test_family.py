"""The miniature family beside tiny-1.5: how its models are trained, and what is shipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from freezeasguard.miniature.architecture import new_scheduler, new_unet
from freezeasguard.miniature.corpus import build_corpus
from freezeasguard.miniature.family import FAMILY, assemble_variant, train_variant
from freezeasguard.miniature.gates import read_gates
from freezeasguard.models.diffusion import (
    NoiseSchedule,
    denoising_loss,
    encode_text,
    load_scheduler,
    load_text,
    load_unet,
    load_vae,
    named_tensors,
    tokenize,
)

MODELS = Path(__file__).parent.parent / "data/models"
BASE = MODELS / "tiny-1.5"


def test_one_set_of_names_and_two_targets() -> None:
    """As in SD v1.4, v1.5 and v2.1, so that a mask's names mean the same tensors in all three."""
    names = set(named_tensors(new_unet()))
    assert len(names) == 686
    for variant in FAMILY.values():
        assert set(named_tensors(new_unet(**variant.unet))) == names
        schedule = NoiseSchedule.of(new_scheduler(variant.prediction_type))
        latents, noise, t = torch.ones(1, 2, 2, 2), torch.full((1, 2, 2, 2), 3.0), torch.tensor([500])
        a = schedule.alphas_cumprod[500]
        velocity = a.sqrt() * 3 - (1 - a).sqrt()
        wanted = {"epsilon": 3.0, "v_prediction": float(velocity)}[variant.prediction_type]
        assert schedule.target(latents, noise, t).flatten().tolist() == pytest.approx([wanted] * 8)


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_a_variant_is_trained_and_put_together_as_a_model_that_loads(name: str, tmp_path: Path) -> None:
    short = replace(FAMILY[name], drawings=2, photographs=2)
    corpus = build_corpus(named=1, images_per_named=2, unnamed=30, per_style=2)
    train_variant(name, BASE, tmp_path / "work", corpus, short, clip_steps=2)
    model = tmp_path / name
    assemble_variant(name, BASE, tmp_path / "work", model)
    schedule = NoiseSchedule.of(load_scheduler(model))
    assert schedule.prediction_type == short.prediction_type
    tokenizer, tower = load_text(model)
    text = encode_text(tower, tokenize(tokenizer, ["a drawing"])[0])
    assert text.shape[2] == short.unet.get("cross_attention_dim", 96)
    noise = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    assert denoising_loss(load_unet(model), schedule, noise, text, torch.tensor([10]), noise).isfinite().all()
    # one autoencoder in the family, and the UNet is not tiny-1.5's
    assert all(
        torch.equal(a, b) for a, b in zip(load_vae(model).parameters(), load_vae(BASE).parameters(), strict=True)
    )
    assert not torch.equal(load_unet(model).conv_in.weight, load_unet(BASE).conv_in.weight)
    trained = [(tmp_path / "work" / part / "curve.json").stat().st_mtime_ns for part in ("drawings", "unet")]
    train_variant(name, BASE, tmp_path / "work", corpus, short, clip_steps=2)  # goes on where it was: nothing is left
    assert trained == [(tmp_path / "work" / part / "curve.json").stat().st_mtime_ns for part in ("drawings", "unet")]


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_shipped_gates_of_the_family_hold(name: str) -> None:
    gates = read_gates(MODELS / name)
    assert {g.name for g in gates} >= {"prompt_retrieval", "no_knowledge", "adaptation_gain"}
    assert [g.name for g in gates if g.passed is False] == []
    assert len(named_tensors(load_unet(MODELS / name))) == 686


def test_the_family_is_small() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) <= 60 * 2**20
