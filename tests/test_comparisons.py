"""Paired differences: Holm's arithmetic, known coverage, and what pairing is worth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.scores.comparisons import holm, paired_differences
from freezeasguard.scores.statistics import bootstrap_interval, resample_clusters

CLASSES = np.repeat(np.arange(12), 6)
PROMPTS = np.repeat(np.arange(36), 2)


def test_holm_on_a_printed_example() -> None:
    # 0.01, 0.04, 0.03, 0.005 -> 4 x 0.005, 3 x 0.01, 2 x 0.03, then 0.04 raised to its forerunner's 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.2]) == [0.2] and holm([0.6, 0.9]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    """A hypothesis falls only if every subset that holds it does; its p is the worst subset's |S| min p."""
    for i, corrected in enumerate(holm(p_values)):
        others = [j for j in range(len(p_values)) if j != i]
        subsets = [(i, *s) for k in range(len(p_values)) for s in itertools.combinations(others, k)]
        worst = max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets)
        assert corrected == pytest.approx(worst)


def resamples(n: int, rng: np.random.Generator) -> list[np.ndarray]:
    return list(resample_clusters((CLASSES, PROMPTS), n, rng))


def synthetic(rng: np.random.Generator, shift: float) -> dict[str, np.ndarray]:
    """Two arms share class and prompt effects; their difference varies from class to class."""
    shared = rng.normal(0, 1, 12)[CLASSES] + rng.normal(0, 0.5, 36)[PROMPTS]
    effect = shift + rng.normal(0, 0.3, 12)[CLASSES]
    return {"a": shared + effect + rng.normal(0, 0.2, 72), "b": shared + rng.normal(0, 0.2, 72)}


def test_interval_covers_the_true_difference() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(150):
        found = paired_differences(synthetic(rng, 0.4), [("a", "b")], resamples(150, rng))[("a", "b")].interval
        covered.append(found.low <= 0.4 <= found.high)
    # Percentile intervals of 12 classes fall a little short of 95% and nested resampling adds a little.
    assert 0.87 <= np.mean(covered) <= 0.995


def test_without_an_effect_few_claims_are_made() -> None:
    rng = np.random.default_rng(1)
    claims = []
    for _ in range(120):
        values = synthetic(rng, 0.0) | {"c": synthetic(rng, 0.0)["a"]}
        pairs = [("a", "b"), ("c", "b"), ("a", "c")]
        found = paired_differences(values, pairs, resamples(150, rng))
        claims.append(min(d.p_holm for d in found.values()) < 0.05)
    assert np.mean(claims) <= 0.12


def test_pairing_takes_out_what_the_arms_share() -> None:
    rng = np.random.default_rng(2)
    values = synthetic(rng, 0.8)
    found = paired_differences(values, [("a", "b")], resamples(400, rng))[("a", "b")]
    alone = bootstrap_interval(lambda rows: float(values["a"][rows].mean()), len(CLASSES), resamples(400, rng))
    assert found.interval.value == pytest.approx(values["a"].mean() - values["b"].mean())
    assert found.interval.high - found.interval.low < 0.7 * (alone.high - alone.low)
    assert found.p == pytest.approx(2 / 401) and found.p_holm == found.p


def test_equal_arms_differ_by_nothing_and_signs_turn_with_the_pair() -> None:
    rng = np.random.default_rng(3)
    values = synthetic(rng, 0.5)
    values["a2"] = values["a"].copy()
    pairs = [("a", "a2"), ("a", "b"), ("b", "a")]
    found = paired_differences(values, pairs, resamples(100, rng))
    same, forth, back = (found[pair] for pair in pairs)
    assert (same.interval.value, same.interval.low, same.interval.high, same.p) == (0, 0, 0, 1)
    assert forth.interval.low == pytest.approx(-back.interval.high) and forth.p == back.p


def test_refusals() -> None:
    rng = np.random.default_rng(0)
    values = {"a": np.zeros(72), "b": np.zeros(71), "c": np.full(72, np.nan)}
    for other, said in (("d", "no scores of the arm 'd'"), ("b", "not paired"), ("c", "without a score")):
        with pytest.raises(FreezeAsGuardError, match=said):
            paired_differences(values, [("a", other)], resamples(10, rng))
    assert paired_differences(values, [], resamples(10, rng)) == {}
