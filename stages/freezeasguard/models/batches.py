"""Batches of encoded images with their timesteps and noise, and losses at them: what every trainer draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.computing import autocast
from freezeasguard.models.diffusion import NoiseSchedule, denoising_loss, draw_noise
from freezeasguard.models.latents import LatentSet
from freezeasguard.settings.compute import PLAIN, Compute


class Batch(NamedTuple):
    """What a denoising loss is taken at, in the order in which `denoising_loss` asks for it."""

    latents: Tensor
    text: Tensor
    timesteps: Tensor
    noise: Tensor


def draw_batch(
    sets: Sequence[LatentSet],
    n: int,
    schedule: NoiseSchedule,
    generator: torch.Generator,
    device: torch.device,
    *,
    flip: bool = True,
    like: Batch | None = None,
) -> Batch:
    """n images of each set, one set after the other, with timesteps and noise; drawn on the CPU.

    Args:
        like: a batch of the same size, whose timesteps and noise are used again instead of drawing new ones.
    """
    drawn = [data.sample(n, generator, flip=flip) for data in sets]
    latents, text = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    timesteps, noise = like[2:] if like else draw_noise(latents, schedule.n_timesteps, generator)
    return Batch(*(x.to(device) for x in (latents, text, timesteps, noise)))


def drawn_loss(
    unet: torch.nn.Module,
    schedule: NoiseSchedule,
    data: LatentSet,
    batch_size: int,
    generator: torch.Generator,
    *,
    flip: bool = True,
    compute: Compute = PLAIN,
) -> Tensor:
    """The mean denoising loss of a drawn batch at drawn timesteps and noise, as `accumulated_loss` computes it."""
    device = next(unet.parameters()).device
    batch = draw_batch([data], batch_size, schedule, generator, device, flip=flip)
    return accumulated_loss(unet, schedule, batch, compute)


def accumulated_loss(
    unet: torch.nn.Module,
    schedule: NoiseSchedule,
    batch: Batch,
    compute: Compute = PLAIN,
    *,
    sign: float = 1,
    target: Tensor | None = None,
) -> Tensor:
    """sign times the mean denoising loss of a batch, for one `backward`: that of its last micro batch.

    The gradients of those before are in `.grad` by then, and no activation of theirs is left. Together they are the
    whole batch's gradient, at the same draws.

    Args:
        target: of the whole batch, in the place of the truth (see `denoising_loss`).
    """
    n, total = len(batch.latents), torch.zeros((), device=batch.latents.device)
    tensors = batch if target is None else (*batch, target)
    loss: Tensor | None = None
    for part in zip(*(tensor.split(compute.micro_batch_size or n) for tensor in tensors), strict=True):
        if loss is not None:
            loss.backward()
            total = total + loss.detach()
        with autocast(compute, batch.latents.device):
            loss = denoising_loss(unet, schedule, *part).mean() * (sign * len(part[0]) / n)
    assert loss is not None
    return loss + total


def finite_loss(loss: float, who: str, when: str, remedy: str) -> float:
    """The loss, unless it is nan or infinite: what trains on would be noise, and look like a result."""
    if not math.isfinite(loss):
        raise FreezeAsGuardError(f"{who}: the loss is {loss} at {when}; {remedy}")
    return loss


@torch.no_grad()
def fixed_noise_losses(
    unet: torch.nn.Module, schedule: NoiseSchedule, data: LatentSet, generator: torch.Generator, n: int = 128
) -> Tensor:
    """The denoising loss [n] at draws of image, timestep and noise that depend on the generator alone.

    Timesteps are stratified, one a stratum and rising, so that two models differ by themselves and not by their draw.
    """
    device = next(unet.parameters()).device
    latents, text = data.sample(n, generator, flip=False)
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = ((torch.arange(n) + torch.rand(n, generator=generator)) / n * schedule.n_timesteps).long()
    parts = [x.to(device).split(32) for x in (latents, text, timesteps, noise)]
    losses = [denoising_loss(unet, schedule, *batch) for batch in zip(*parts, strict=True)]
    return torch.cat(losses)


def fixed_noise_loss(
    unet: torch.nn.Module, schedule: NoiseSchedule, data: LatentSet, generator: torch.Generator, n: int = 128
) -> float:
    """The mean of `fixed_noise_losses`."""
    return float(fixed_noise_losses(unet, schedule, data, generator, n).mean())
