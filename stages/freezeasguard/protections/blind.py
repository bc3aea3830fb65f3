"""Protections that see no data and train nothing: they need the model's tensors, not its network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.protected import Protected, mask_sizes, tensor_shapes, write_for
from freezeasguard.protections.heuristics import RULES, heuristic_frozen
from freezeasguard.protections.random_freezing import random_frozen_by_parameters, random_frozen_units
from freezeasguard.settings.params import arm_granularity


def protect_nothing(tensors: Mapping[str, Tensor], folder: Path, method: str) -> None:
    """Full fine-tuning: nothing frozen, nothing edited."""
    write_for(tensors, folder, Protected(method, settings={"rho": 0.0}))


def protect_randomly(
    tensors: Mapping[str, Tensor],
    folder: Path,
    rho: float,
    seed: int,
    granularity: str = "tensor",
    *,
    by_parameters: bool = False,
) -> None:
    """Freeze drawn tensors, rows or weights.

    rho is the share of the network's units; `by_parameters` freezes whole tensors up to that share of its single
    weights (see `random_frozen_by_parameters`), the control of a mask that happens to freeze large tensors.
    """
    shapes = tensor_shapes(tensors)
    generator = torch.Generator().manual_seed(seed)
    settings: dict[str, Any] = {"rho": rho, "seed": seed}
    if by_parameters:
        if granularity != "tensor":
            raise FreezeAsGuardError(f"random freezing by parameters draws tensors, not granularity {granularity!r}")
        frozen = random_frozen_by_parameters(shapes, rho, generator)
        drawn = Protected("random", frozen, settings={**settings, "by": "parameters"})
    else:
        units = random_frozen_units(shapes, rho, granularity, generator)
        drawn = Protected("random", settings=settings, granularity=granularity, frozen_units=units)
    write_for(tensors, folder, replace(drawn, diagnostics=mask_sizes(drawn, shapes)))


def protect_blindly(tensors: Mapping[str, Tensor], arm: str, folder: Path, rho: float, seed: int) -> None:
    """An arm whose mask knows nothing of the data: random of some kind, or by a rule of thumb."""
    if arm in RULES:
        frozen = heuristic_frozen(arm, tensors, rho, torch.Generator().manual_seed(seed))
        by_rule = Protected(arm, frozen, settings={"rho": rho, "seed": seed})
        write_for(tensors, folder, replace(by_rule, diagnostics=mask_sizes(by_rule, tensor_shapes(tensors))))
        return
    by_parameters = arm == "random-parameters"
    protect_randomly(tensors, folder, rho, seed, arm_granularity(arm), by_parameters=by_parameters)
