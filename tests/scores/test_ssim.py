"""SSIM: the formula by scipy's own filter, its ends, and its place beside the paper's TOPIQ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from freezeasguard.checks import _weights
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.params import Score

SETTINGS = Score(bootstrap_resamples=10)
RADIUS = 5
"""Of Wang et al.'s window of 11 x 11 at a standard deviation of 1.5."""


def formula(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, Eq. 13, of two images [3, h, w] in 0..1, mirrored at their edges."""

    def local(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, sigma=(0, 1.5, 1.5), radius=(0, RADIUS, RADIUS), mode="mirror")

    mean_a, mean_b = local(a), local(b)
    var_a, var_b, both = local(a * a) - mean_a**2, local(b * b) - mean_b**2, local(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(found.mean())


def test_ssim_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    a, noise = rng.uniform(0.1, 0.9, (3, 3, 32, 32)), rng.normal(0, 0.1, (3, 3, 32, 32))
    b = np.clip(a + noise * np.array([0.0, 0.3, 1.0])[:, None, None, None], 0, 1)
    ours = SCORES["ssim"].load(SETTINGS, Path())(*(torch.tensor(2 * x - 1, dtype=torch.float64) for x in (a, b)))
    assert ours.tolist() == pytest.approx([formula(x, y) for x, y in zip(a, b, strict=True)], abs=1e-6)
    assert ours[0] == pytest.approx(1) and ours[0] > ours[1] > ours[2]


def test_a_score_without_a_network_misses_no_weights() -> None:
    assert _weights(SCORES["ssim"], SETTINGS) == ""
