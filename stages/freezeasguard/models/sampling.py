"""Batched generation: the model's own sampler, classifier-free guidance, the same noise for every arm."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.computing import autocast
from freezeasguard.seeds import seed_of
from freezeasguard.settings.compute import PLAIN, Compute


def image_seed(prompt: str, index: int, seed: int) -> int:
    """The seed of a prompt's index-th image: the same whatever the arm, the side, or the batch."""
    return seed_of(seed, index, prompt)


def starting_noise(prompts: Sequence[str], indices: Sequence[int], shape: Sequence[int], seed: int) -> Tensor:
    """Gaussian noise [n, *shape], each row from its own generator."""
    return torch.stack(
        [
            torch.randn(tuple(shape), generator=torch.Generator().manual_seed(image_seed(prompt, index, seed)))
            for prompt, index in zip(prompts, indices, strict=True)
        ]
    )


def check_finite(values: Tensor, label: str, what: str) -> None:
    """Refuse what would become black or flat images."""
    if not values.isfinite().all():
        raise FreezeAsGuardError(
            f"{label}: the {what} are not finite; lower adapt.lr or generate.guidance_scale in params.yaml"
        )


@torch.no_grad()
def sample(
    unet: torch.nn.Module,
    scheduler: Any,
    noise: Tensor,
    text: Tensor,
    empty_text: Tensor,
    *,
    steps: int,
    guidance_scale: float,
    label: str = "sampling",
    compute: Compute = PLAIN,
) -> Tensor:
    """Denoise a batch to latents [n, c, h, w], and stop where they are not finite.

    One call of the UNet a step serves the guided and the unguided half of the whole batch.

    Args:
        noise: [n, c, h, w]; text: [n, tokens, d]; empty_text: [tokens, d].
        label: what is sampled, as an error names it.
    """
    scheduler = copy.deepcopy(scheduler)  # PNDM keeps the past predictions of its batch
    scheduler.set_timesteps(steps)
    latents = noise * scheduler.init_noise_sigma
    guided = guidance_scale != 1.0
    context = torch.cat([empty_text.expand_as(text), text]) if guided else text
    for step, timestep in enumerate(scheduler.timesteps):
        inputs = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, timestep)
        with autocast(compute, latents.device):
            prediction = unet(inputs, timestep, context).sample
        prediction = prediction.to(latents)  # the sampler's sums over steps stay in float32
        if guided:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance_scale * (conditional - unconditional)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
        check_finite(latents, label, f"latents at step {step} of {len(scheduler.timesteps)}")
    return latents
