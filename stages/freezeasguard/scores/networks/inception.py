"""Inception features, for FID (`frechet.frechet_distance`) and KID (`kernel_distance`)."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.images import to_uint8
from freezeasguard.scores.networks.optional import import_paper_package, paper_package_missing

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)


class InceptionFeatures:
    """Pooled features [n, 2048] of FID's Inception-v3, TensorFlow's weights and resizing (package torch-fidelity).

    Args:
        path: `weights-inception-2015-12-05-6726825d.pth`; nothing is downloaded.
    Raises:
        FreezeAsGuardError: torch-fidelity is not installed, or the file is absent or another network's.
    """

    device = "cpu"

    def __init__(self, path: Path) -> None:
        network = inception_module().FeatureExtractorInceptionV3
        if not path.is_file():
            raise FreezeAsGuardError(f"{path} is missing; download {INCEPTION_URL} and put it there")
        try:
            self.model: Any = network("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
        except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError) as error:
            raise FreezeAsGuardError(f"{path} does not hold FID's Inception ({error}); get {INCEPTION_URL}") from error

    def to(self, device: str) -> InceptionFeatures:
        self.model, self.device = self.model.to(device), device
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor, batch_size: int = 64) -> np.ndarray:
        """Features [n, 2048] of images [n, 3, h, w] in -1..1, which it rounds to 8 bits and resizes to 299 px."""
        parts = []
        for batch in images.split(batch_size):
            pixels = torch.from_numpy(to_uint8(batch)).permute(0, 3, 1, 2)
            parts.append(self.model(pixels.to(self.device))[0].cpu())
        return torch.cat(parts).numpy()


def inception_module() -> ModuleType:
    """torch-fidelity's Inception module, whose package imports torchvision only for its other networks.

    torchvision's wheels break beside a CPU build of torch, so the package's own __init__ is left out.
    """
    module_name = "torch_fidelity.feature_extractor_inceptionv3"
    if sys.modules.get("torch_fidelity") is not None:
        return import_paper_package(module_name)
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        raise paper_package_missing("torch_fidelity", "it is not installed")
    bare = ModuleType("torch_fidelity")
    bare.__path__ = list(spec.submodule_search_locations or [])
    sys.modules["torch_fidelity"] = bare
    try:
        return import_paper_package(module_name)
    finally:
        # Whoever imports the package later gets the whole of it.
        for name in [n for n in sys.modules if n.partition(".")[0] == "torch_fidelity"]:
            del sys.modules[name]


def kernel_distance(
    a: np.ndarray, b: np.ndarray, subset_size: int, n_subsets: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Kernel distance (KID on Inception features, Binkowski et al. 2018): mean over subsets, and standard error.

    Each value is the unbiased MMD^2 of `subset_size` rows of either set, drawn without replacement, with the
    kernel (x.y / d + 1)^3; unlike FID it is unbiased at any sample size, so it may be below 0.

    The standard error is that of the mean against *new images*. The subsets share rows, so std / sqrt(n_subsets),
    which only counts redrawing them, would go to 0 with their number; the delete-d jackknife (Shao and Wu 1989)
    scales their variance by r / (n - r), r of n rows kept. It takes the rows as independent.

    Args:
        a, b: features [n, d]; n may differ.
        subset_size: r, at least 2 and at most the smaller n.
        n_subsets: values to average; at least 2 for a standard error.
        rng: draws the subsets.
    Returns:
        mean, standard error; the second is nan with one subset, or where a subset is a whole set.
    """
    n = min(len(a), len(b))
    if not 2 <= subset_size <= n:
        raise FreezeAsGuardError(f"kernel distance: subset_size {subset_size} is outside 2..{n}, the smaller set")
    if n_subsets < 1:
        raise FreezeAsGuardError(f"kernel distance: n_subsets is {n_subsets}; it takes at least one")
    a, b = a.astype(np.float64), b.astype(np.float64)
    values = [
        _squared_mmd(
            a[rng.choice(len(a), subset_size, replace=False)], b[rng.choice(len(b), subset_size, replace=False)]
        )
        for _ in range(n_subsets)
    ]
    if n_subsets == 1 or subset_size == n:
        return float(np.mean(values)), float("nan")
    variance = np.var(values, ddof=1)
    # The second term is what averaging more subsets would still change.
    error = np.sqrt(variance * subset_size / (n - subset_size) + variance / n_subsets)
    return float(np.mean(values)), float(error)


def _squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased MMD^2 of two samples [m, d]: no row is paired with itself."""
    within = 0.0
    for rows in (a, b):
        kernel = _cubic_kernel(rows, rows)
        within += (kernel.sum() - np.trace(kernel)) / (len(rows) * (len(rows) - 1))
    return float(within - 2 * _cubic_kernel(a, b).mean())


def _cubic_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3
