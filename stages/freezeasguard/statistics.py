"""THE bootstrap: intervals over (class, prompt, image) clusters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from freezeasguard.errors import FreezeAsGuardError


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


def resample_clusters(clusters: Sequence[Sequence[Any]], rng: np.random.Generator) -> np.ndarray:
    """Row indices of one nested bootstrap sample.

    Args:
        clusters: one sequence of labels a level, outermost first, e.g. (classes, prompts). Each level is
            drawn with replacement inside the draw of the level above it; rows innermost.
    """
    n = len(clusters[0])

    def draw(rows: np.ndarray, level: int) -> np.ndarray:
        if level == len(clusters):
            return rng.choice(rows, size=len(rows))
        labels = np.asarray(clusters[level])[rows]
        groups = [rows[labels == label] for label in np.unique(labels)]
        picked = rng.integers(len(groups), size=len(groups))
        return np.concatenate([draw(groups[g], level + 1) for g in picked])

    return draw(np.arange(n), 0)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    clusters: Sequence[Sequence[Any]],
    *,
    n_resamples: int,
    rng: np.random.Generator,
    level: float = 0.95,
) -> Interval:
    """The statistic of all rows with its clustered bootstrap interval.

    Args:
        statistic: from row indices to a number.
        clusters: see `resample_clusters`.
    Returns:
        value +- the spread of the resamples about their own median. For a mean this is the percentile
        interval to first order; a Fréchet distance is larger on any resample than on its sample (repeated
        rows shrink the spread), and centring takes that bias out.
    """
    n = len(clusters[0])
    if n == 0:
        raise FreezeAsGuardError("no rows to compute a score on")
    value = float(statistic(np.arange(n)))
    draws = np.array([statistic(resample_clusters(clusters, rng)) for _ in range(n_resamples)])
    tail = (1 - level) / 2
    low, middle, high = np.quantile(draws, [tail, 0.5, 1 - tail])
    return Interval(value, value + float(low - middle), value + float(high - middle))
