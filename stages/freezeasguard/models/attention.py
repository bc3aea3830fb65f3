"""The attention projections of a diffusers UNet: what IMMA defends, and what anchors hold."""

from __future__ import annotations

import torch

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.diffusion import named_tensors

ATTENTIONS = {"all": ("attn1", "attn2"), "cross": ("attn2",)}
PROJECTIONS = frozenset({"to_q", "to_k", "to_v", "to_out"})


def attention_projections(unet: torch.nn.Module, scope: str) -> tuple[str, ...]:
    """Their tensors' names, sorted: of self and cross attention (`all`), or of cross attention alone.

    Raises:
        FreezeAsGuardError: a network without any.
    """
    names = tuple(
        name
        for name in sorted(named_tensors(unet))
        if not PROJECTIONS.isdisjoint(parts := name.split(".")) and not set(ATTENTIONS[scope]).isdisjoint(parts)
    )
    if not names:
        raise FreezeAsGuardError("the UNet has no attention projections (attn1, attn2); choose another method for it")
    return names
