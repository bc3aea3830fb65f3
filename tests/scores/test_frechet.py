from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.scores.networks.frechet import frechet_distance


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(200, 8), (5, 40), (2, 3)])
def test_a_set_is_at_no_distance_from_itself(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    features = rng.normal(size=shape)
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + 1) == pytest.approx(shape[1])


def test_gaussians_of_known_distance(rng: np.random.Generator) -> None:
    # Axis-parallel Gaussians: sum of (mean difference)^2 + (std difference)^2.
    n, std_a, std_b, shift = 100_000, np.array([1.0, 2.0, 0.5]), np.array([2.0, 1.0, 0.5]), np.array([3.0, 0.0, -1.0])
    a = rng.normal(size=(n, 3)) * std_a
    b = rng.normal(size=(n, 3)) * std_b + shift
    a_small, b_small = a[:1200], b[:1200]
    expected = np.square(shift).sum() + np.square(std_a - std_b).sum()
    assert expected == 12
    assert frechet_distance(a_small, b_small) == pytest.approx(expected, rel=0.1)
    # All rows, through moments: the function's n_a x n_b matrix would not fit.
    assert moments_distance(a, b) == pytest.approx(expected, rel=0.01)


def moments_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The textbook formula with a matrix root."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(scipy.linalg.sqrtm(cov_a @ cov_b))
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root))


@pytest.mark.parametrize(("n_a", "n_b"), [(60, 60), (40, 90), (200, 25)])
def test_agrees_with_the_matrix_root(rng: np.random.Generator, n_a: int, n_b: int) -> None:
    mixing = rng.normal(size=(16, 16))
    a = rng.normal(size=(n_a, 16)) @ mixing
    b = rng.normal(size=(n_b, 16)) * 1.5 + 0.3
    assert frechet_distance(a, b) == pytest.approx(moments_distance(a, b), rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)


def test_single_precision_features_do_not_lose_the_distance(rng: np.random.Generator) -> None:
    # Far from 0, a float32 mean depends on the order of its rows, here by 1e-3.
    a = (1000 + (rng.normal(size=(500, 4)) * 256).round() / 256).astype(np.float32)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + np.float32(2**-8)) == pytest.approx(4 * 2**-16, rel=1e-4)


@pytest.mark.parametrize(("n_a", "n_b"), [(1, 5), (5, 1), (0, 5)])
def test_needs_two_rows(n_a: int, n_b: int) -> None:
    with pytest.raises(FreezeAsGuardError, match=f"two images a side, got {n_a} and {n_b}"):
        frechet_distance(np.zeros((n_a, 3)), np.zeros((n_b, 3)))
