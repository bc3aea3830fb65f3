"""How networks compute (`settings.compute`): for users, masks, generation and scores alike.

    configure(compute, device)                      once in a process
    prepare(unet, compute)                          before it trains
    with autocast(compute, device): loss = ...      forward passes; backward comes after it

Weights, gradients and optimisers stay in float32 whatever the precision. The VAE computes in float32 always: Stable
Diffusion's overflows in float16, and it is a small share of the work.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.settings.compute import Compute

LOW_PRECISION = frozenset({"cuda"})
"""Kinds of device that compute in less than float32 where `compute.precision` says so; a test adds "cpu"."""


def configure(compute: Compute, device: torch.device | str) -> None:
    """TF32 on or off, in products and convolutions: left alone, cuDNN's convolutions would use it unasked."""
    if torch.device(device).type == "cuda":
        precision = "tf32" if compute.tf32 else "ieee"
        torch.backends.cuda.matmul.fp32_precision = precision
        torch.backends.cudnn.conv.fp32_precision = precision  # pyright: ignore[reportAttributeAccessIssue]


def autocast(compute: Compute, device: torch.device | str) -> AbstractContextManager[Any]:
    """bfloat16 where it is asked for and the device is a GPU; it has float32's range, so no loss is scaled."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=compute.precision == "bfloat16" and kind in LOW_PRECISION)


def prepare(unet: torch.nn.Module, compute: Compute) -> None:
    """Checkpoint activations where it is asked for, and see that attention is torch's own, which keeps no scores."""
    if compute.gradient_checkpointing:
        unet.enable_gradient_checkpointing()  # pyright: ignore[reportCallIssue]
    for name, processor in getattr(unet, "attn_processors", {}).items():
        if (kind := type(processor).__name__) != "AttnProcessor2_0":
            raise FreezeAsGuardError(
                f"{name} is {kind}, not AttnProcessor2_0; install the diffusers of requirements.lock"
            )
