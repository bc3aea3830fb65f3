"""The numbers of the methods beside mask learning (see METHOD.md, section 4)."""

from __future__ import annotations

from typing import Literal

from freezeasguard.settings.blocks import Block, Guidance, NotNegative, Positive, PositiveFloat, Rate, Ratio


class UCE(Block):
    """Closed-form erasing."""

    erase_scale: NotNegative = 1.0
    ridge: PositiveFloat = 0.5
    """lambda: how strongly each projection is held at its old value."""
    preserve: list[str] = []
    """Prompts to keep, besides the empty one of reading A."""
    preserve_legal: bool = False
    """Keep the captions of the legal side's mask-learning images as well; UCE's authors keep some 1,700 artists."""


class IMMAOfParams(Block):
    """`imma` of params.yaml."""

    steps: Positive | None = None
    """Pairs of an inner (attacker's) and an outer (defender's) step; null: as many as the case's own users have."""
    batch_size: Positive
    inner_lr: Rate | None = None
    """Of the simulated attacker; null: that of the case's own users."""
    outer_lr: Rate | None = None
    """Null: four times inner_lr, as its authors have it."""
    attn_scope: Literal["all", "cross"] = "all"
    """all: self and cross attention, what the published code trains; cross: what its file name says."""
    weight_decay: NotNegative = 1e-2
    max_grad_norm: PositiveFloat = 1.0
    checkpoint_minutes: PositiveFloat = 10
    """How often a run leaves its state, to go on from after a kill: 12 GB of Stable Diffusion v1.5."""


class IMMA(IMMAOfParams):
    """Immunising one case's model."""

    steps: Positive  # pyright: ignore[reportIncompatibleVariableOverride]


class Anchored(Block):
    """Learned anchors; params.yaml has them in `methods.anchored`."""

    rounds: Positive = 100
    """Of user steps and one step of the anchors."""
    user_steps: Positive = 1
    restart_rounds: Positive = 20
    """The simulated users start again from the published model after so many rounds."""
    batch_size: Positive = 8
    """Images a side, and as many of each kind that D is taken at: neutral, illegal and legal."""
    user_lr: Rate
    """Of the simulated users; null in params.yaml: that of the case's own."""
    outer_lr: Rate = 5e-4
    lambda_illegal: NotNegative = 1.0
    lambda_legal: NotNegative = 1.0
    lambda_published: NotNegative = 1.0
    cap: PositiveFloat = 1.5
    """Of the illegal user's loss, in units of the published model's on the same images: beyond it nothing is gained."""
    component: Literal["outside_attention", "matrices", "attention", "convolutions", "time_embedding"] = (
        "outside_attention"
    )
    """What is anchored, and so what users cannot train; as the arms `freeze_*` name it."""
    neutral_prompts: list[str] = []
    unseen_prompts: list[str] = []
    """Neutral as well, and nothing is learned from them: the drift is told on their images."""
    neutral_images: Positive = 4
    """A prompt."""
    empty_share: Ratio = 0.5
    """Of D's images, those under the empty prompt: guidance asks for it, and no user trains it."""
    neutral_steps: Positive = 20
    neutral_guidance: Guidance = 3.0
    weight_decay: NotNegative = 1e-2
    """Of the users."""
    max_grad_norm: PositiveFloat = 1.0
    checkpoint_minutes: PositiveFloat = 10
    """How often a run leaves its state: two users of Stable Diffusion v1.5 with their moments, 20 GB."""
