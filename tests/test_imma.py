"""IMMA: whom each phase moves, that both do their work, and that what is kept slows a user down."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from pydantic import ValidationError

from conftest import random_latents
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.miniature.gates_figures import drawn_figures, latent_set
from freezeasguard.models.attention import attention_projections
from freezeasguard.models.diffusion import (
    NoiseSchedule,
    denoising_loss,
    draw_noise,
    load_scheduler,
    load_unet,
    named_tensors,
)
from freezeasguard.models.latents import LatentSet
from freezeasguard.models.protected import load_tensors
from freezeasguard.protections.imma import immunise
from freezeasguard.settings.methods import IMMA
from freezeasguard.settings.users import Finetuning
from freezeasguard.users.training import finetune

MODEL = Path(__file__).parent.parent / "data" / "models" / "tiny-1.5"
CONFIG = IMMA(steps=3, batch_size=4, inner_lr=1e-3, outer_lr=1e-3)


def run(unet: UNet2DConditionModel, schedule: NoiseSchedule, config: IMMA):  # noqa: ANN201
    return immunise(unet, schedule, random_latents(4, seed=3), config, generator=torch.Generator().manual_seed(0))


def test_defended_tensors(tiny_unet: UNet2DConditionModel) -> None:
    every, cross = attention_projections(tiny_unet, "all"), attention_projections(tiny_unet, "cross")
    # 16 transformers, each with to_q, to_k, to_v, to_out.0 (weight and bias) in attn1 and attn2.
    assert len(every) == 16 * 2 * 5 and len(cross) == 16 * 5
    assert set(cross) < set(every) and all(".attn2." in name for name in cross)
    with pytest.raises(FreezeAsGuardError, match="no attention projections"):
        attention_projections(torch.nn.Linear(2, 2), "all")
    with pytest.raises(ValidationError, match="attn_scope"):
        IMMA.model_validate({**CONFIG.model_dump(), "attn_scope": "self"})


@pytest.mark.parametrize("scope", ["all", "cross"])
def test_outer_phase_moves_the_defended_tensors_alone(
    tiny_unet: UNet2DConditionModel, schedule: NoiseSchedule, scope: str
) -> None:
    before = {n: t.detach().clone() for n, t in named_tensors(tiny_unet).items()}
    edited, history = run(tiny_unet, schedule, CONFIG.model_copy(update=dict(inner_lr=0.0, attn_scope=scope)))
    moved = {n for n, t in named_tensors(tiny_unet).items() if not torch.equal(t, before[n])}
    assert moved == set(edited) == set(attention_projections(tiny_unet, scope))
    assert len(history.inner) == len(history.outer) == 3


def test_inner_phase_moves_the_whole_unet(tiny_unet: UNet2DConditionModel, schedule: NoiseSchedule) -> None:
    before = {n: t.detach().clone() for n, t in named_tensors(tiny_unet).items()}
    run(tiny_unet, schedule, CONFIG.model_copy(update=dict(outer_lr=0.0)))
    # The keys' biases cancel in a softmax, so a tensor without any gradient may stay; none has here.
    assert all(not torch.equal(t, before[n]) for n, t in named_tensors(tiny_unet).items())


@pytest.fixture(scope="module")
def figure() -> tuple[LatentSet, NoiseSchedule]:
    """Eight images of a figure that the miniature model never saw."""
    images, captions, _ = drawn_figures(1, 8, seed=5)
    return latent_set(MODEL, images, captions), NoiseSchedule.of(load_scheduler(MODEL))


def mean_loss(unet: torch.nn.Module, data: LatentSet, schedule: NoiseSchedule) -> float:
    """At fixed timesteps and noise, so that two models can be compared."""
    latents, text = data.latents[:, 0].repeat(6, 1, 1, 1), data.text.repeat(6, 1, 1)
    timesteps, noise = draw_noise(latents, schedule.n_timesteps, torch.Generator().manual_seed(9))
    with torch.no_grad():
        return float(denoising_loss(unet, schedule, latents, text, timesteps, noise).mean())


def test_attacker_descends_and_defender_ascends(figure: tuple[LatentSet, NoiseSchedule]) -> None:
    data, schedule = figure
    start = mean_loss(load_unet(MODEL), data, schedule)
    ends = {}
    for name, lrs in {"attacker": (5e-4, 0.0), "defender": (0.0, 5e-4)}.items():
        unet = load_unet(MODEL)
        config = CONFIG.model_copy(update={"steps": 12, "inner_lr": lrs[0], "outer_lr": lrs[1]})
        immunise(unet, schedule, data, config, generator=torch.Generator().manual_seed(0))
        ends[name] = mean_loss(unet, data, schedule)
    assert ends["attacker"] < start < ends["defender"], (start, ends)


def test_an_immunised_model_adapts_more_slowly(figure: tuple[LatentSet, NoiseSchedule]) -> None:
    data, schedule = figure
    config = IMMA(steps=20, batch_size=4, inner_lr=1e-4, outer_lr=1e-3)
    edited, _ = immunise(load_unet(MODEL), schedule, data, config, generator=torch.Generator().manual_seed(0))
    left = {}
    for name, tensors in {"plain": {}, "immunised": edited}.items():
        unet = load_unet(MODEL)
        load_tensors(unet, tensors)
        user = Finetuning(steps=15, batch_size=4, lr=5e-4)
        finetune(unet, schedule, data, user, generator=torch.Generator().manual_seed(1))
        left[name] = mean_loss(unet, data, schedule)
    assert left["immunised"] > 1.05 * left["plain"], left


def test_the_same_seed_gives_the_same_tensors(tiny_unet: UNet2DConditionModel, schedule: NoiseSchedule) -> None:
    first, _ = run(copy.deepcopy(tiny_unet), schedule, CONFIG)
    second, _ = run(copy.deepcopy(tiny_unet), schedule, CONFIG)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_loss_that_explodes_is_told(tiny_unet: UNet2DConditionModel, schedule: NoiseSchedule) -> None:
    with pytest.raises(FreezeAsGuardError, match="lower imma.outer_lr"):
        run(tiny_unet, schedule, CONFIG.model_copy(update=dict(steps=30, outer_lr=1e12)))
