"""What a mask is made of: its task signal, its saturation, and whom it agrees with (METHOD, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from freezeasguard.bilevel import LearnedMask
from freezeasguard.data.latents import SIDES
from freezeasguard.mask import n_frozen, overlap


def frozen_share_of_parameters(frozen: frozenset[str], sizes: Mapping[str, int]) -> float:
    """Share of single weights that the frozen tensors hold, beside rho, the share of tensors."""
    return sum(sizes[name] for name in frozen) / sum(sizes.values())


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation of two signals over tensors."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def mask_diagnostics(
    learned: LearnedMask,
    rho: float,
    without_signal: LearnedMask,
    other_seeds: Sequence[LearnedMask],
    sizes: Mapping[str, int],
) -> dict[str, Any]:
    """Figures that say whether the task signal made this mask.

    Overlaps are shares of the frozen tensors; two unrelated masks overlap by about rho.
    """
    frozen = learned.frozen(rho)
    history = learned.history
    sizes_by_side = {side: history.mean_size(side) for side in SIDES}
    signals = {side: history.mean_signal(side) for side in SIDES}
    return {
        "n_frozen": n_frozen(rho, len(learned.names)),
        "share_of_parameters_frozen": frozen_share_of_parameters(frozen, sizes),
        "overlap_expected_by_chance": rho,
        "overlap_with_initial_logits": overlap(frozen, learned.initially_frozen(rho)),
        "overlap_with_zeroed_signal": overlap(frozen, without_signal.frozen(rho)),
        "overlap_across_seeds": [overlap(frozen, other.frozen(rho)) for other in other_seeds],
        "task_signal": {
            side: {
                "median_size": float(sizes_by_side[side].median()),
                "max_size": float(sizes_by_side[side].max()),
                "share_consistent": float((signals[side].abs() > 0.5 * sizes_by_side[side]).float().mean()),
            }
            for side in SIDES
        },
        "rank_correlation_of_sides": rank_correlation(signals["illegal"].abs(), signals["legal"].abs()),
        "logit_spread_start": float(learned.initial_logits.std()),
        "logit_spread_end": float(learned.logits.std()),
        "saturated": history.saturated,
        "mean_mask": history.mean_mask,
        "user_loss": history.user_loss,
        "loss": history.loss,
    }
