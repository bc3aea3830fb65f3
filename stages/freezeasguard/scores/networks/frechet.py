"""Fréchet distance between two sets of image features.

On Inception features this is FID. The embedded world uses EfficientNet-lite0's features and says so:
`fd_efficientnet_lite0` is no FID and is comparable only to itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from freezeasguard.errors import FreezeAsGuardError


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), from the samples themselves.

    Args:
        a, b: features [n, d], at least two rows each.
    """
    return frechet_of_rows(a, b)(np.arange(len(a)))


def frechet_of_rows(a: np.ndarray, b: np.ndarray) -> Callable[[np.ndarray], float]:
    """The distance from b of any rows of a, e.g. of many bootstrap resamples; exact, all products formed once.

    With A and B the centred samples over sqrt(n - 1), S_a S_b has the non-zero eigenvalues of
    (A B^T)(A B^T)^T, so tr (S_a S_b)^(1/2) is the sum of the singular values of the n_a x n_b matrix
    A B^T: far cheaper than a d x d matrix root where n < d. Means and traces are sums of scalar products
    between the rows of a, whose origin is mean_b here.
    """
    if min(len(a), len(b)) < 2:
        raise FreezeAsGuardError(f"a Fréchet distance needs two images a side, got {len(a)} and {len(b)}")
    mean_b = b.mean(0, dtype=np.float64)
    a, b = a - mean_b, b - mean_b
    centred_b = b / np.sqrt(len(b) - 1)
    products, with_b, trace_b = a @ a.T, a @ centred_b.T, np.square(centred_b).sum()

    def distance(rows: np.ndarray) -> float:
        n = len(rows)
        own = products[np.ix_(rows, rows)]
        between = own.mean()  # |mean_a - mean_b|^2
        trace_a = (np.trace(own) - n * between) / (n - 1)
        a_b = (with_b[rows] - with_b[rows].mean(0)) / np.sqrt(n - 1)
        return float(between + trace_a + trace_b - 2 * np.linalg.svd(a_b, compute_uv=False).sum())

    return distance
