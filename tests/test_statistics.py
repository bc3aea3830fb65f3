from __future__ import annotations

import numpy as np
import pytest

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.scores.networks.frechet import frechet_distance
from freezeasguard.scores.statistics import bootstrap_interval, resample_clusters


def clustered(rng: np.random.Generator, n_classes: int, n_rows: int, class_std: float) -> tuple[np.ndarray, np.ndarray]:
    """Values of mean 3 whose classes differ, and the class of each."""
    classes = np.repeat(np.arange(n_classes), n_rows)
    effects = rng.normal(scale=class_std, size=n_classes) if class_std else np.zeros(n_classes)
    return 3 + effects[classes] + rng.normal(size=len(classes)), classes


def test_coverage_of_a_known_mean() -> None:
    rng = np.random.default_rng(0)
    hits, naive_hits, repetitions = 0, 0, 200
    for _ in range(repetitions):
        values, classes = clustered(rng, n_classes=24, n_rows=4, class_std=1.5)
        resamples = resample_clusters([classes], 120, rng)
        interval = bootstrap_interval(lambda rows: values[rows].mean(), len(values), resamples)  # noqa: B023
        assert interval.value == values.mean()
        hits += interval.low <= 3 <= interval.high
        error = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
        naive_hits += abs(values.mean() - 3) <= error
    assert 0.85 <= hits / repetitions <= 0.99
    assert naive_hits / repetitions < 0.85, "the classes make no difference: the test would pass without them"


def test_class_effects_widen_the_interval_only_where_the_classes_are_known() -> None:
    rng = np.random.default_rng(1)
    values, classes = clustered(rng, n_classes=20, n_rows=20, class_std=2.0)

    def width(labels: np.ndarray) -> float:
        resamples = resample_clusters([labels], 200, rng)
        interval = bootstrap_interval(lambda rows: values[rows].mean(), len(values), resamples)
        return interval.high - interval.low

    naive = width(np.arange(len(values)))
    assert width(classes) > 2 * naive
    assert width(rng.permutation(classes)) < 2 * naive


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_level_is_the_share_of_resamples(level: float) -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=200)
    resamples = resample_clusters([np.arange(200)], 300, rng)
    interval = bootstrap_interval(lambda rows: values[rows].mean(), 200, resamples, level=level)
    half = {0.5: 0.674, 0.95: 1.96}[level] * values.std() / np.sqrt(200)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.2)
    assert interval.low < interval.value < interval.high


def test_a_sample_takes_whole_groups_at_every_level() -> None:
    classes = np.repeat(["x", "y", "z"], 8)
    prompts = np.tile(np.repeat(["p", "q"], 4), 3)  # the same prompt names in every class
    rng = np.random.default_rng(3)
    n_classes = set()
    for rows in resample_clusters([classes, prompts], 50, rng):
        assert len(rows) == 24  # equal groups, so equal numbers of rows
        drawn, counts = np.unique(classes[rows], return_counts=True)
        n_classes.add(len(drawn))
        assert (counts % 8 == 0).all()
        for name in drawn:
            _, of_prompt = np.unique(prompts[rows[classes[rows] == name]], return_counts=True)
            assert (of_prompt % 4 == 0).all()
    assert n_classes == {1, 2, 3}


def nested_sample(levels: list[np.ndarray], rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One sample as the docstring has it, its groups sought as they are drawn."""
    if not levels:
        return rng.choice(rows, size=len(rows))
    labels = levels[0][rows]
    groups = [rows[labels == label] for label in np.unique(labels)]
    picked = rng.integers(len(groups), size=len(groups))
    return np.concatenate([nested_sample(levels[1:], groups[g], rng) for g in picked])


def test_groups_sought_once_give_the_samples_of_groups_sought_each_time() -> None:
    draw = np.random.default_rng(7)
    classes, prompts = draw.integers(4, size=40), draw.integers(15, size=40)
    mine, plain = np.random.default_rng(8), np.random.default_rng(8)
    for rows in resample_clusters([classes, prompts], 20, mine):
        np.testing.assert_array_equal(rows, nested_sample([classes, prompts], np.arange(40), plain))
    assert mine.integers(2**60) == plain.integers(2**60)


def test_rows_are_drawn_with_replacement_inside_their_class() -> None:
    (rows,) = resample_clusters([np.zeros(50)], 1, np.random.default_rng(6))
    assert len(rows) == 50 and 20 < len(set(rows.tolist())) < 45


def test_one_seed_gives_one_interval() -> None:
    values, classes = clustered(np.random.default_rng(4), 6, 5, 1.0)

    def interval(seed: int) -> object:
        rng = np.random.default_rng(seed)
        return bootstrap_interval(lambda rows: values[rows].mean(), len(values), resample_clusters([classes], 30, rng))

    assert interval(0) == interval(0)
    assert interval(0) != interval(1)


def test_a_frechet_distance_lies_within_its_interval() -> None:
    # A resample repeats rows, so its own distance is far above the sample's; the centring takes that out.
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(30, 20)), rng.normal(size=(30, 20)) + 0.1

    def distance(rows: np.ndarray) -> float:
        return frechet_distance(a[rows], b)

    value = distance(np.arange(30))
    resampled = [distance(rows) for rows in resample_clusters([np.arange(30)], 40, rng)]
    assert min(resampled) > value
    interval = bootstrap_interval(distance, 30, resample_clusters([np.arange(30)], 40, rng))
    assert interval.low < interval.value == value < interval.high


def test_no_rows_is_an_error() -> None:
    with pytest.raises(FreezeAsGuardError, match="no rows"):
        bootstrap_interval(lambda rows: 0.0, 0, [])
