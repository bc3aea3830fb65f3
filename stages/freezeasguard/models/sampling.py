"""Batched generation: the model's own sampler, classifier-free guidance, the same noise for every arm."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def image_seed(prompt: str, index: int, seed: int) -> int:
    """The seed of a prompt's index-th image: the same whatever the arm, the side, or the batch."""
    digest = hashlib.sha256(f"{seed}|{index}|{prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def starting_noise(prompts: Sequence[str], indices: Sequence[int], shape: Sequence[int], seed: int) -> Tensor:
    """Gaussian noise [n, *shape], each row from its own generator."""
    return torch.stack(
        [
            torch.randn(tuple(shape), generator=torch.Generator().manual_seed(image_seed(prompt, index, seed)))
            for prompt, index in zip(prompts, indices, strict=True)
        ]
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
) -> Tensor:
    """Denoise a batch to latents [n, c, h, w].

    One call of the UNet a step serves the guided and the unguided half of the whole batch.

    Args:
        noise: [n, c, h, w]; text: [n, tokens, d]; empty_text: [tokens, d].
    """
    scheduler = copy.deepcopy(scheduler)  # PNDM keeps the past predictions of its batch
    scheduler.set_timesteps(steps)
    latents = noise * scheduler.init_noise_sigma
    guided = guidance_scale != 1.0
    context = torch.cat([empty_text.expand_as(text), text]) if guided else text
    for timestep in scheduler.timesteps:
        inputs = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, timestep)
        prediction = unet(inputs, timestep, context).sample
        if guided:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + guidance_scale * (conditional - unconditional)
        latents = scheduler.step(prediction, timestep, latents).prev_sample
    return latents
