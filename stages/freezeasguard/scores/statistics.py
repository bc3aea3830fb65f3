"""THE bootstrap: intervals over (class, prompt, image) clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from freezeasguard.errors import FreezeAsGuardError


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


def resample_clusters(
    clusters: Sequence[Sequence[Any]], n_resamples: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Row indices of nested bootstrap samples. The groups are sought once, for all of them.

    Args:
        clusters: one sequence of labels a level, outermost first, e.g. (classes, prompts). Each level is
            drawn with replacement inside the draw of the level above it; rows innermost.
    """
    levels = [np.asarray(labels) for labels in clusters]

    def grouped(rows: np.ndarray, level: int) -> Any:
        """The rows themselves below the last level, else a list of groups."""
        if level == len(levels):
            return rows
        labels = levels[level][rows]
        return [grouped(rows[labels == label], level + 1) for label in np.unique(labels)]

    def draw(group: Any) -> np.ndarray:
        picked = rng.integers(len(group), size=len(group))
        return group[picked] if isinstance(group, np.ndarray) else np.concatenate([draw(group[g]) for g in picked])

    everything = grouped(np.arange(len(clusters[0])), 0)
    for _ in range(n_resamples):
        yield draw(everything)


def resample_within(
    strata: Sequence[Any], clusters: Sequence[Sequence[Any]], n_resamples: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Row indices of bootstrap samples that have every stratum: `clusters` are drawn inside each.

    Args:
        strata: a label a row, e.g. its class, where a score is a mean over just these classes.
    """
    labels = np.asarray(strata)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    draws = [resample_clusters([np.asarray(level)[rows] for level in clusters], n_resamples, rng) for rows in groups]
    for drawn in zip(*draws, strict=True):
        yield np.concatenate([rows[picked] for rows, picked in zip(groups, drawn, strict=True)])


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], n: int, resamples: Iterable[np.ndarray], *, level: float = 0.95
) -> Interval:
    """The statistic of all n rows with its clustered bootstrap interval.

    Args:
        statistic: from row indices to a number.
        resamples: of those rows, from `resample_clusters`; several statistics may share them.
    Returns:
        value +- the spread of the resamples about their own median. For a mean this is the percentile
        interval to first order; a Fréchet distance is larger on any resample than on its sample (repeated
        rows shrink the spread), and centring takes that bias out.
    """
    if n == 0:
        raise FreezeAsGuardError("no rows to compute a score on")
    value = float(statistic(np.arange(n)))
    draws = np.array([statistic(rows) for rows in resamples])
    tail = (1 - level) / 2
    low, middle, high = np.quantile(draws, [tail, 0.5, 1 - tail])
    return Interval(value, value + float(low - middle), value + float(high - middle))
