"""What mask learning keeps in memory at once, counted before it runs (METHOD, section 3, "Memory and speed")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from freezeasguard.masks.simulated_user import BUCKET_BYTES
from freezeasguard.models.granularity import n_units
from freezeasguard.settings.compute import Compute
from freezeasguard.settings.mask import Mask

FLOAT = 4

STABLE_DIFFUSION = {"float32": 4.6e5, "bfloat16": 2.3e5, "float32 checkpointed": 1.2e5, "bfloat16 checkpointed": 3.6e4}
"""Bytes of activations a latent pixel of an image, of SD v1.x's topology and width; a test counts them anew."""


def activation_bytes(latent_px: Sequence[int], compute: Compute) -> int:
    """Of one image whose latents are [h, w], in a UNet like SD v1.5's: 64 x 64 for 512 px."""
    kind = compute.precision + (" checkpointed" if compute.gradient_checkpointing else "")
    return round(prod(latent_px) * STABLE_DIFFUSION[kind])


def learning_bytes(
    shapes: Mapping[str, Sequence[int]], config: Mask, compute: Compute, activations: int
) -> dict[str, int]:
    """What lives on the device in a user's step, the largest of them all; `host` is what rests beside it.

    An upper bound: the parts need not be at their largest together.

    Args:
        shapes: of the UNet's tensors by name; activations: bytes an image (see `activation_bytes`).
    """
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    weights = sum(sizes.values())
    adamw, n_users = config.user_optimizer == "adamw", 1 if config.users == "joint" else 2
    delta = 2 if config.precision == "bfloat16" else FLOAT
    user = weights * (FLOAT + delta + 2 * FLOAT * adamw)
    awake = 1 if compute.users_on_host else n_users
    images = max(1, config.batch_size // 2) * (2 if config.users == "joint" else 1)
    at_once = min(images, compute.micro_batch_size or images)
    bucket = min(FLOAT * weights, BUCKET_BYTES + FLOAT * max(sizes.values()))
    summed = FLOAT * weights if at_once < images else 0
    # A mask step of rows or weights holds the logits, the mask, two sides' signals, the path's factors, and a sum.
    of_units = 0 if config.granularity == "tensor" else 6 * FLOAT
    counted = {
        "users": awake * user,
        "gradients": max(summed, bucket),
        # AdamW's update of a bucket holds the root, the step, and theta_ft twice.
        "update": bucket * (4 if adamw else 0),
        "half_precision_weights": 2 * weights if compute.precision == "bfloat16" else 0,
        "activations": at_once * activations,
        "units": of_units * sum(n_units(shape, config.granularity) for shape in shapes.values()),
    }
    return {**counted, "device": sum(counted.values()), "host": (n_users - awake) * user}
