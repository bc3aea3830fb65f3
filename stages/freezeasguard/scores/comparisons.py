"""Is one arm better than another? Paired differences over the same prompts and noise, Holm-corrected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.scores.statistics import Interval


@dataclass(frozen=True)
class Difference:
    """Mean of one arm minus the mean of another, over images that share prompt and noise."""

    interval: Interval
    p: float
    """Two-sided bootstrap p-value, before correction; never below 2 / (resamples + 1)."""
    p_holm: float
    """Corrected for every comparison that was asked for together (Holm 1979)."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the i-th smallest of n is multiplied by n - i, kept monotone and <= 1.

    It bounds the chance of any false claim among the n at the level it is compared with, whatever their
    dependence.
    """
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, running)
    return corrected


def paired_differences(
    values: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[str, str]],
    resamples: Sequence[np.ndarray],
    *,
    level: float = 0.95,
) -> dict[tuple[str, str], Difference]:
    """Each pair's mean difference, with the percentile interval of the clustered bootstrap.

    All pairs see the same resamples, so that their differences add up.

    Args:
        values: a score an image [n] by arm; row i is one prompt and one noise in every arm.
        pairs: (a, b) asks for the mean of a - b.
        resamples: of those rows, from `resample_clusters`; several scores may share them.
    """
    n = None
    for arm in sorted({arm for pair in pairs for arm in pair}):
        if arm not in values:
            raise FreezeAsGuardError(f"no scores of the arm {arm!r}; there are {', '.join(sorted(values))}")
        n = n or len(values[arm])
        if len(values[arm]) != n:
            raise FreezeAsGuardError(f"arm {arm!r} has {len(values[arm])} images, the others {n}: they are not paired")
        if not np.isfinite(values[arm]).all():
            raise FreezeAsGuardError(f"arm {arm!r} has images without a score; pair only what both arms have")
    if not pairs:
        return {}
    rows = np.stack([values[a] - values[b] for a, b in pairs])
    draws = np.stack([rows[:, drawn].mean(1) for drawn in resamples], axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=1)
    # Both tails count the sample itself, so that no finite bootstrap claims p = 0.
    below, above = ((beyond.sum(1) + 1) / (len(resamples) + 1) for beyond in (draws <= 0, draws >= 0))
    p = np.minimum(1.0, 2 * np.minimum(below, above))
    return {
        pair: Difference(Interval(float(row.mean()), float(lo), float(hi)), float(one), corrected)
        for pair, row, lo, hi, one, corrected in zip(pairs, rows, low, high, p, holm(p.tolist()), strict=True)
    }
