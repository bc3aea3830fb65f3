"""Precision, checkpointing and accumulation change how much memory training takes, and not what is computed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import random_latents
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.masks.simulated_user import GradientStream
from freezeasguard.models import computing
from freezeasguard.models.batches import draw_batch
from freezeasguard.models.computing import autocast, configure, prepare
from freezeasguard.models.diffusion import NoiseSchedule, denoising_loss
from freezeasguard.settings.compute import Compute

CHECKPOINTED = Compute(gradient_checkpointing=True)
LOW = Compute(precision="bfloat16")


@pytest.fixture
def low_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computing, "LOW_PRECISION", {"cpu", "cuda"})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(unet: Any, schedule: NoiseSchedule, compute: Compute = Compute(), n: int = 4) -> dict[str, Tensor]:
    batch = draw_batch([random_latents(6, seed=0)], n, schedule, generator(), torch.device("cpu"))
    kind = next(unet.parameters()).dtype
    batch = batch._replace(**{key: getattr(batch, key).to(kind) for key in ("latents", "text", "noise")})
    prepare(unet.train(), compute)
    with autocast(compute, "cpu"):
        loss = denoising_loss(unet, schedule, *batch).mean()
    loss.backward()
    return {name: p.grad.clone() for name, p in unet.named_parameters()}


def test_checkpointing_saves_activations_and_gives_the_same_gradient(tiny_unet: Any, schedule: NoiseSchedule) -> None:
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.nbytes
        return tensor

    found = []
    for compute in (Compute(), CHECKPOINTED):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found.append(gradients(copy.deepcopy(tiny_unet).double(), schedule, compute))
    plain, checkpointed = found
    assert len(plain) == 686 and kept[1] < 0.8 * kept[0], kept
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-10, atol=1e-14)


def test_a_gradient_stream_that_moves_weights_is_not_disturbed_by_checkpointing(
    tiny_unet: Any, schedule: NoiseSchedule
) -> None:
    """A tensor moves as soon as its gradient is there: no block may be computed again from moved weights."""
    expected = gradients(copy.deepcopy(tiny_unet), schedule)
    tiny_unet.train()
    prepare(tiny_unet, CHECKPOINTED)
    parameters = dict(tiny_unet.named_parameters())
    start = {name: p.detach().clone() for name, p in parameters.items()}

    def move(names: list[str], grads: list[Tensor]) -> None:
        for name, gradient in zip(names, grads, strict=True):
            parameters[name].data.sub_(gradient)

    batch = draw_batch([random_latents(6, seed=0)], 4, schedule, generator(), torch.device("cpu"))
    with GradientStream(parameters, move, bucket_bytes=1):
        denoising_loss(tiny_unet, schedule, *batch).mean().backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(parameters[name].detach(), start[name] - gradient, rtol=1e-5, atol=1e-6)


def test_bfloat16_computes_low_and_keeps_gradients_in_float32(
    low_on_cpu: None, tiny_unet: Any, schedule: NoiseSchedule
) -> None:
    kinds: set[torch.dtype] = set()
    tiny_unet.mid_block.attentions[0].proj_in.register_forward_hook(lambda *args: kinds.add(args[2].dtype))
    plain = gradients(copy.deepcopy(tiny_unet), schedule)
    low = gradients(tiny_unet, schedule, Compute(precision="bfloat16", gradient_checkpointing=True))
    assert torch.bfloat16 in kinds and {g.dtype for g in low.values()} == {torch.float32}
    a, b = (torch.cat([g[name].flatten() for name in sorted(plain)]) for g in (plain, low))
    assert 0 < float((a - b).norm() / a.norm()) < 0.05


def test_a_cpu_computes_in_float32_whatever_the_settings_say(tiny_unet: Any, schedule: NoiseSchedule) -> None:
    plain, asked = (gradients(copy.deepcopy(tiny_unet), schedule, compute) for compute in (Compute(), LOW))
    assert all(torch.equal(asked[name], plain[name]) for name in plain)


def test_tf32_is_on_where_it_is_asked_for_and_off_elsewhere() -> None:
    switches = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    try:
        configure(Compute(tf32=True), "cpu")
        assert [switch.fp32_precision for switch in switches] == before
        configure(Compute(tf32=True), "cuda:0")
        assert [switch.fp32_precision for switch in switches] == ["tf32"] * 2
        configure(Compute(), torch.device("cuda"))
        assert [switch.fp32_precision for switch in switches] == ["ieee"] * 2
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def test_attention_that_keeps_its_scores_is_refused(tiny_unet: Any) -> None:
    prepare(tiny_unet, Compute())
    from diffusers.models.attention_processor import AttnProcessor

    tiny_unet.set_attn_processor(AttnProcessor())
    with pytest.raises(FreezeAsGuardError, match="is AttnProcessor, not AttnProcessor2_0"):
        prepare(tiny_unet, Compute())
