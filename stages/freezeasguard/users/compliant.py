"""The user whose trainer honours the mask: what is frozen stays at its published value (paper, section 3)."""

from __future__ import annotations

from typing import Any

import torch

from freezeasguard.models.diffusion import NoiseSchedule
from freezeasguard.models.latents import LatentSet
from freezeasguard.models.protected import Protected, load_tensors
from freezeasguard.settings.users import Finetuning
from freezeasguard.users.training import finetune


def attack(
    unet: torch.nn.Module,
    protected: Protected,
    schedule: NoiseSchedule,
    data: LatentSet,
    settings: Finetuning,
    device: str,
    **how: Any,
) -> list[float]:
    """Fine-tune the published UNet in place under its mask; the loss of every step. `how` as in `finetune`."""
    load_tensors(unet, protected.edited)
    mask = {"frozen": protected.frozen, "frozen_units": protected.frozen_units, "granularity": protected.granularity}
    return finetune(unet.to(device), schedule, data, settings, **mask, **how)
