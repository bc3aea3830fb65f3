"""What a mask is made of: its task signal, its saturation, and whom it agrees with (METHOD, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from freezeasguard.masks.bilevel import LearnedMask
from freezeasguard.models.granularity import split_units
from freezeasguard.sides import SIDES

RANKED = 2**24
"""Sorting the 860 million weights of SD v1.5 four times takes 27 GB and minutes; 16 million tell the same."""


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation of two signals [n]; of more than RANKED, of an even sample of them."""
    every = max(1, len(a) // RANKED)
    ranks = torch.stack([x[::every].argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def overlap_of_units(a: Tensor, b: Tensor) -> float:
    """Share of `a`'s frozen units (bool [N]) that `b` freezes too; two unrelated masks overlap by about rho."""
    return float((a & b).sum() / a.sum()) if a.any() else 1.0


def significant(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits - 1}e}")


def sums_by_tensor(units: Tensor, learned: LearnedMask) -> Tensor:
    """Values [N] of all units -> their sums over each tensor, in the order of the sorted names."""
    parts = split_units(units, learned.shapes, learned.granularity)
    return torch.stack([parts[name].double().sum() for name in learned.names])


def task_signal(learned: LearnedMask, side: str) -> dict[str, Any]:
    """One side's signal over the mask steps: its size a unit, and where in the network it sits."""
    signal, size = learned.history.mean_signal(side), learned.history.mean_size(side)
    by_tensor = dict(zip(learned.names, sums_by_tensor(signal, learned).tolist(), strict=True))
    return {
        "median_size": float(size.median()),
        "max_size": float(size.max()),
        "share_consistent": float((signal.abs() > 0.5 * size).float().mean()),
        "by_tensor": {name: significant(value) for name, value in by_tensor.items()},
    }


def mask_diagnostics(
    learned: LearnedMask, rho: float, without_signal: LearnedMask, other_seeds: Sequence[LearnedMask]
) -> dict[str, Any]:
    """Figures that say whether the task signal made this mask; none of them lists rows or weights.

    Overlaps are shares of the frozen units; two unrelated masks overlap by about rho.
    """
    frozen = learned.top(rho)
    history = learned.history
    signals = [history.mean_signal(side) for side in SIDES]
    return {
        "overlap_expected_by_chance": rho,
        "overlap_with_initial_logits": overlap_of_units(frozen, learned.initially_top(rho)),
        "overlap_with_zeroed_signal": overlap_of_units(frozen, without_signal.top(rho)),
        "overlap_across_seeds": [overlap_of_units(frozen, other.top(rho)) for other in other_seeds],
        "task_signal": {side: task_signal(learned, side) for side in SIDES},
        # of sizes: do both sides need the same tensors, the same units?
        "rank_correlation_of_sides": rank_correlation(*(sums_by_tensor(s, learned).abs() for s in signals)),
        "rank_correlation_of_sides_by_unit": rank_correlation(*(s.abs() for s in signals)),
        "logit_spread_start": float(learned.initial_logits.std()),
        "logit_spread_end": float(learned.logits.std()),
        "saturated": history.saturated,
        "mean_mask": history.mean_mask,
        "user_loss": history.user_loss,
        "loss": history.loss,
        "path_sum": history.path_sum,
        "path_check": history.path_check,
    }
