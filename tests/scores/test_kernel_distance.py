from __future__ import annotations

import numpy as np
import pytest

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.scores.networks.inception import kernel_distance


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def double_loop(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased MMD^2, pair by pair."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    def within(rows: np.ndarray) -> float:
        pairs = [kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return sum(pairs) / len(pairs)

    return within(a) + within(b) - 2 * float(np.mean([kernel(x, y) for x in a for y in b]))


@pytest.mark.parametrize("shape", [(2, 1), (7, 3), (12, 20)])
def test_agrees_with_the_double_loop_on_the_full_set(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    a, b = rng.normal(size=shape), rng.normal(size=shape) + 0.5
    mean, error = kernel_distance(a, b, subset_size=shape[0], n_subsets=1, rng=rng)
    assert mean == pytest.approx(double_loop(a, b), rel=1e-10)
    assert np.isnan(error)


def test_closed_form_of_a_tiny_example(rng: np.random.Generator) -> None:
    # d = 2: k(a1, a2) = (0/2 + 1)^3 = 1; k(b1, b2) = (8/2 + 1)^3 = 125; k(a, b) = (2/2 + 1)^3 = 8 for all four.
    a, b = np.array([[1.0, 0], [0, 1]]), np.array([[2.0, 2], [2, 2]])
    assert kernel_distance(a, b, 2, 1, rng)[0] == 1 + 125 - 2 * 8


def test_point_masses(rng: np.random.Generator) -> None:
    # Sets of one repeated row x and y: k(x, x) + k(y, y) - 2 k(x, y), whatever the subsets.
    a, b = np.full((9, 4), 1.0), np.full((6, 4), 2.0)
    mean, error = kernel_distance(a, b, 3, 5, rng)
    assert mean == pytest.approx(2**3 + 5**3 - 2 * 3**3)
    assert error == 0


def test_alike_is_near_zero_and_unlike_is_not(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 600, 16))
    alike, error = kernel_distance(a, b, 200, 20, rng)
    assert abs(alike) < 3 * error
    shifted, shifted_error = kernel_distance(a, b + 0.3, 200, 20, rng)
    assert shifted > 10 * error
    assert shifted > 5 * shifted_error


def test_unbiased_at_any_subset_size(rng: np.random.Generator) -> None:
    # Of one distribution the expectation is 0; the biased estimate (each row paired with itself) is far above it.
    values = [kernel_distance(*rng.normal(size=(2, 12, 4)), subset_size=6, n_subsets=4, rng=rng)[0] for _ in range(600)]
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values)) < 3 * error
    assert error < 0.05  # a row's kernel with itself exceeds that with others by about 7: a bias of 2 at 6 rows


def test_the_standard_error_is_that_over_new_images(rng: np.random.Generator) -> None:
    n, subsets, repetitions = 80, 40, 120
    values, errors = [], []
    for _ in range(repetitions):
        a, b = rng.normal(size=(2, n, 3))
        value, error = kernel_distance(a, b + 1, 40, subsets, rng)
        values.append(value)
        errors.append(error)
    spread, reported = np.std(values), np.sqrt(np.mean(np.square(errors)))
    assert 0.75 < reported / spread < 1.3


def test_draws_come_from_the_generator(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 30, 5))
    first, again, other = (kernel_distance(a, b, 10, 3, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_single_precision_features_are_summed_in_double(rng: np.random.Generator) -> None:
    a, b = (rng.normal(size=(40, 8)).astype(np.float32) + 30 for _ in range(2))
    single, _ = kernel_distance(a, b, 40, 1, np.random.default_rng(0))
    double, _ = kernel_distance(a.astype(np.float64), b.astype(np.float64), 40, 1, np.random.default_rng(0))
    assert single == double


@pytest.mark.parametrize(("subset_size", "n_subsets", "message"), [(1, 5, "2..6"), (7, 5, "2..6"), (4, 0, "at least")])
def test_bad_subsets_are_refused(rng: np.random.Generator, subset_size: int, n_subsets: int, message: str) -> None:
    with pytest.raises(FreezeAsGuardError, match=message):
        kernel_distance(np.zeros((6, 2)), np.zeros((9, 2)), subset_size, n_subsets, rng)
