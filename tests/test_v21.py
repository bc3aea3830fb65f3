"""SD v2.1's kind of UNet - v-prediction, linear projections, a number of heads a block - through every method."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from conftest import TEXT, random_latents, sd_schedule, small_unet
from freezeasguard.masks.bilevel import MaskLearner
from freezeasguard.models.attention import attention_projections
from freezeasguard.models.diffusion import named_tensors
from freezeasguard.protections.heuristics import KINDS, is_of_kind
from freezeasguard.protections.imma import immunise
from freezeasguard.protections.uce import Edit, cross_attention_projections, edited_projection
from freezeasguard.settings.compute import Compute
from freezeasguard.settings.methods import IMMA, UCE
from freezeasguard.sides import SIDES
from test_bilevel import mask_config, moved, weights_of

V21: dict[str, Any] = {"use_linear_projection": True, "upcast_attention": True}
"""Beside the heads and the width of the text, how v2.1's configuration departs from v1.5's."""


@pytest.fixture(scope="module")
def _v21() -> UNet2DConditionModel:
    return small_unet(attention_head_dim=(1, 2, 4, 4), **V21)


@pytest.fixture
def v21(_v21: UNet2DConditionModel) -> UNet2DConditionModel:
    return copy.deepcopy(_v21)


def test_the_real_topology_has_the_same_686_names_and_other_shapes() -> None:
    with torch.device("meta"):
        heads = {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024}
        v21 = named_tensors(UNet2DConditionModel(sample_size=96, **heads, **V21))
        v15 = named_tensors(UNet2DConditionModel(sample_size=64, attention_head_dim=8, cross_attention_dim=768))
    assert len(v21) == 686 and v21.keys() == v15.keys()
    assert sum(t.numel() for t in v21.values()) == 865_910_724
    other = {name for name in v21 if v21[name].shape != v15[name].shape}
    assert {name.split(".")[-2] for name in other} == {"proj_in", "proj_out", "to_k", "to_v"}
    assert sum(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in v21) == 32
    kinds = {kind: {name for name in v21 if is_of_kind(name, kind)} for kind in KINDS}
    assert kinds == {kind: {name for name in v15 if is_of_kind(name, kind)} for kind in KINDS}


def test_a_mask_is_learned_on_v_prediction(v21: UNet2DConditionModel) -> None:
    data = {side: random_latents(4, seed=i) for i, side in enumerate(SIDES)}
    config = mask_config("freezeasguard", mask_steps=1, batch_size=2, mask_batch_size=1, user_lr=1e-4)
    losses, frozen = {}, {}
    for kind in ("epsilon", "v_prediction"):
        unet = copy.deepcopy(v21)
        before = weights_of(unet)
        finetuned = {(side,): moved(before, i, by=0.01) for i, side in enumerate(SIDES)}
        draw, compute = torch.Generator().manual_seed(0), Compute(gradient_checkpointing=True, users_on_host=True)
        unet.train()
        learner = MaskLearner(unet, sd_schedule(kind), data, finetuned, config, 0.3, draw, compute)
        learned = learner.learn()
        losses[kind], frozen[kind] = learned.history.user_loss, learned.frozen(0.3)
        assert learned.history.signal_sum["illegal"].count_nonzero() > 600
    assert len(frozen["v_prediction"]) == 206 and losses["v_prediction"] != losses["epsilon"]


def test_imma_defends_the_projections_on_v_prediction(v21: UNet2DConditionModel) -> None:
    assert len(attention_projections(v21, "all")) == 160 and len(attention_projections(v21, "cross")) == 80
    before = weights_of(v21)
    config = IMMA(steps=1, batch_size=1, inner_lr=1e-3, outer_lr=1e-3).model_copy(update={"inner_lr": 0.0})
    draw, compute = torch.Generator().manual_seed(0), Compute(gradient_checkpointing=True)
    schedule = sd_schedule("v_prediction")
    edited, _ = immunise(v21, schedule, random_latents(2, seed=3), config, generator=draw, compute=compute)
    moved_names = {name for name, tensor in named_tensors(v21).items() if not torch.equal(tensor, before[name])}
    assert moved_names == set(edited) == set(attention_projections(v21, "all"))


def test_uce_edits_the_32_projections_whatever_the_width_of_the_text(v21: UNet2DConditionModel) -> None:
    found = cross_attention_projections(v21)
    assert len(found) == 32 and {tensor.shape[1] for tensor in found.values()} == {TEXT}
    draw = torch.Generator().manual_seed(0)
    context, guide = (torch.randn(1, 1024, generator=draw) for _ in range(2))
    weight = torch.randn(6, 1024, generator=draw)
    edit = Edit(context, guide)
    new = edited_projection(weight, [edit], [], UCE(ridge=1e-6), "B")
    torch.testing.assert_close(context @ new.T, guide @ weight.T, rtol=1e-3, atol=1e-3)
    assert (context @ weight.T - guide @ weight.T).abs().max() > 10
