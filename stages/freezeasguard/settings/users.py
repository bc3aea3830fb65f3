"""How users fine-tune (paper, App. E), and how the images of their models are made."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from freezeasguard.settings.blocks import Block, Count, Guidance, NotNegative, Positive, PositiveFloat, Rate
from freezeasguard.users.registry import ATTACKERS, COMPLIANT


class Finetuning(Block):
    """AdamW at a constant rate, as the paper's users train."""

    steps: Count
    batch_size: Positive
    lr: Rate
    weight_decay: NotNegative = 1e-2
    max_grad_norm: PositiveFloat = 1.0
    flip: bool = True
    checkpoint_steps: Positive | None = 50
    checkpoint_minutes: PositiveFloat | None = None
    """A checkpoint is due after so many steps, and after so much time: one of Stable Diffusion v1.5 is 10 GB."""


class Adapt(Finetuning):
    """The users after protection."""

    attacker: str = COMPLIANT
    """A name out of `users.registry`: what the user does with the mask."""
    per_class: bool = False
    """One user a class, each of all the steps, as the paper's authors train (App. E); or one user a side."""
    store: Literal["float32", "bfloat16"] = "float32"
    """How the changed tensors are stored for generation: of Stable Diffusion v1.5, 3.4 GB a user, or half of it."""

    @field_validator("attacker")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ATTACKERS:
            raise ValueError(f"choose from {', '.join(ATTACKERS)}")
        return name


class Generate(Block):
    """Which images are made of an adapted model, and how."""

    steps: Annotated[Positive, Field(le=1000)]
    """Of the sampler; a model has 1000 timesteps."""
    guidance_scale: Guidance
    prompts_per_side: Positive
    """Of the adaptation split, what the paper's evaluation uses; dealt evenly to the classes, one each at least."""
    held_out_prompts_per_side: Count
    images_per_prompt: Positive
    batch_size: Positive
