"""The numbers of the rival methods (see METHOD.md, section 4)."""

from __future__ import annotations

from typing import Literal

from freezeasguard.settings.blocks import Block, NotNegative, Positive, PositiveFloat, Rate


class UCE(Block):
    """Closed-form erasing."""

    erase_scale: NotNegative = 1.0
    ridge: PositiveFloat = 0.5
    """lambda: how strongly each projection is held at its old value."""
    preserve: list[str] = []
    """Prompts to keep, besides the empty one of reading A."""


class IMMA(Block):
    """Immunising."""

    steps: Positive
    """Pairs of an inner (attacker's) and an outer (defender's) step."""
    batch_size: Positive
    inner_lr: Rate
    outer_lr: Rate
    attn_scope: Literal["all", "cross"] = "all"
    """all: self and cross attention, what the published code trains; cross: what its file name says."""
    weight_decay: NotNegative = 1e-2
    max_grad_norm: PositiveFloat = 1.0
    checkpoint_minutes: PositiveFloat = 10
    """How often a run leaves its state, to go on from after a kill: 12 GB of Stable Diffusion v1.5."""
