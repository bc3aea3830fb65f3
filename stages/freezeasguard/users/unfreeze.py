"""The user who ignores the mask: takes the published weights, edits included, and trains them all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from freezeasguard.models.diffusion import NoiseSchedule
from freezeasguard.models.latents import LatentSet
from freezeasguard.models.protected import Protected
from freezeasguard.settings.users import Finetuning
from freezeasguard.users import compliant


def attack(
    unet: torch.nn.Module,
    protected: Protected,
    schedule: NoiseSchedule,
    data: LatentSet,
    settings: Finetuning,
    device: str,
    **how: Any,
) -> list[float]:
    """As the compliant user of a model of which nothing is frozen."""
    freed = replace(protected, frozen=frozenset(), frozen_units={})
    return compliant.attack(unet, freed, schedule, data, settings, device, **how)
