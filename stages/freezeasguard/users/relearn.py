"""theta_ft of Algorithm 1: the simulated users fine-tune the plain model fully, before any mask."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

from freezeasguard.models.latents import CaseData, LatentSet
from freezeasguard.settings.resolve import RelearnSettings
from freezeasguard.sides import FINETUNED_SIDES, USERS
from freezeasguard.users.adapt import train_users


def relearn_case(
    settings: RelearnSettings,
    model: Path,
    data: CaseData,
    out: Path,
    label: str,
    device: str,
    workers: int,
    costs: Path | None = None,
) -> None:
    """On the mask-learning halves, jointly, one user a side, or both, as the masks' presets simulate them."""
    names = [name for users in settings.users for name in USERS[users]]
    sets = {
        name: reduce(LatentSet.join, [data.select(side, ["mask_learning"]) for side in FINETUNED_SIDES[name]])
        for name in names
    }
    how = (label, device, workers, costs, settings.compute, settings.code)
    train_users(settings.finetuning, (settings.seed, "relearn"), model, None, sets, out, *how)
