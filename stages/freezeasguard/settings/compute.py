"""How networks compute: what saves memory or time, and can move a result in its last digits."""

from __future__ import annotations

from typing import Literal

from freezeasguard.settings.blocks import Block, Positive


class Compute(Block):
    """Of training, encoding, generation and scoring alike; no unit of it changes what is computed."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast on a GPU, weights and optimiser staying in float32. A CPU computes in float32 all the same."""
    tf32: bool = False
    """TensorFloat-32 in a GPU's float32 products and convolutions."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    micro_batch_size: Positive | None = None
    """Images that go through the UNet at once while training; a batch's gradients are accumulated. Null: the batch."""
    users_on_host: bool = False
    """Of mask learning: what a simulated user does not need in its own step waits in the host's memory."""


PLAIN = Compute()
"""float32, whole batches: what a caller gets who says nothing."""
