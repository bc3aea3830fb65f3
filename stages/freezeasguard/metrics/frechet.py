"""Fréchet distance between two sets of image features.

On Inception features this is FID. The embedded world uses EfficientNet-lite0's features and says so:
`fd_efficientnet_lite0` is no FID and is comparable only to itself.
"""

from __future__ import annotations

import numpy as np

from freezeasguard.errors import FreezeAsGuardError


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), from the samples themselves.

    With A and B the centred samples over sqrt(n - 1), S_a S_b has the non-zero eigenvalues of
    (A B^T)(A B^T)^T, so tr (S_a S_b)^(1/2) is the sum of the singular values of the n_a x n_b matrix
    A B^T: exact, and far cheaper than a d x d matrix root where n < d.

    Args:
        a, b: features [n, d], at least two rows each.
    """
    if min(len(a), len(b)) < 2:
        raise FreezeAsGuardError(f"a Fréchet distance needs two images a side, got {len(a)} and {len(b)}")
    a, b = a.astype(np.float64), b.astype(np.float64)
    centred_a = (a - a.mean(0)) / np.sqrt(len(a) - 1)
    centred_b = (b - b.mean(0)) / np.sqrt(len(b) - 1)
    trace_root = np.linalg.svd(centred_a @ centred_b.T, compute_uv=False).sum()
    between = np.square(a.mean(0) - b.mean(0)).sum()
    return float(between + np.square(centred_a).sum() + np.square(centred_b).sum() - 2 * trace_root)
