"""Random-rho: freeze a share of the tensors drawn blindly (paper, section 4)."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from freezeasguard.mask import n_frozen


def random_frozen(names: Iterable[str], rho: float, generator: torch.Generator) -> frozenset[str]:
    """Exactly round(rho N) names, each set of that size equally likely; the order of `names` is idle."""
    ordered = sorted(names)
    order = torch.randperm(len(ordered), generator=generator).tolist()
    return frozenset(ordered[i] for i in order[: n_frozen(rho, len(ordered))])
