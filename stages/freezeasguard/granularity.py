"""What a mask decides on: a tensor (the paper), a row (an output channel), or a single weight.

Rows and weights are an extension of our own (METHOD, section 3). A mask over them is one value a *unit*,
kept by tensor name: [1] for a tensor, [out_channels] for rows, [numel] for weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.mask import n_frozen

Granularity = Literal["tensor", "row", "element"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)


def check_granularity(granularity: str) -> str:
    if granularity not in GRANULARITIES:
        raise FreezeAsGuardError(f"granularity is {granularity!r}; use {', '.join(GRANULARITIES)}")
    return granularity


def n_units(shape: Sequence[int], granularity: str) -> int:
    """How many units a tensor of this shape has; a scalar is one row."""
    check_granularity(granularity)
    if granularity == "tensor":
        return 1
    size = 1
    for length in shape[:1] if granularity == "row" else shape:
        size *= length
    return size


def sum_over_units(values: Tensor, granularity: str) -> Tensor:
    """Per-weight values, shaped like the tensor -> their sums a unit [n_units]."""
    check_granularity(granularity)
    if granularity == "tensor":
        return values.sum().reshape(1)
    if granularity == "row":
        return values.reshape(n_units(values.shape, granularity), -1).sum(1)
    return values.flatten()


def spread_over_weights(units: Tensor, shape: Sequence[int], granularity: str) -> Tensor:
    """One value a unit [n_units] -> a tensor that broadcasts against (or has) the tensor's shape."""
    if len(units) != n_units(shape, granularity):
        raise FreezeAsGuardError(
            f"{len(units)} {granularity} values for a tensor of shape {tuple(shape)}, which has "
            f"{n_units(shape, granularity)}"
        )
    if granularity == "tensor":
        return units.reshape(())
    if granularity == "row":
        return units.reshape(-1, *[1] * max(0, len(shape) - 1)) if len(shape) else units.reshape(())
    return units.reshape(tuple(shape))


def split_units(flat: Tensor, shapes: Mapping[str, Sequence[int]], granularity: str) -> dict[str, Tensor]:
    """A vector over all units [sum of n_units], in the order of the sorted names -> its part of each name."""
    names = sorted(shapes)
    sizes = [n_units(shapes[name], granularity) for name in names]
    if sum(sizes) != len(flat):
        raise FreezeAsGuardError(f"{len(flat)} values for {sum(sizes)} {granularity} units")
    return dict(zip(names, flat.split(sizes), strict=True))


def top_units(flat: Tensor, rho: float) -> Tensor:
    """bool [n]: the round(rho n) units with the largest values; ties fall to the earlier unit."""
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    order = torch.sort(flat.detach().cpu(), descending=True, stable=True).indices
    chosen[order[: n_frozen(rho, len(flat))]] = True
    return chosen


def pack_bits(units: Tensor) -> Tensor:
    """bool [n] -> uint8 [ceil(n / 8)], first unit in the lowest bit."""
    import numpy as np

    return torch.from_numpy(np.packbits(units.cpu().numpy(), bitorder="little"))


def unpack_bits(packed: Tensor, n: int) -> Tensor:
    """The n units that `pack_bits` stored."""
    import numpy as np

    if len(packed) != (n + 7) // 8:
        raise FreezeAsGuardError(f"{len(packed)} bytes of mask for {n} units, which need {(n + 7) // 8}")
    return torch.from_numpy(np.unpackbits(packed.cpu().numpy(), count=n, bitorder="little")).bool()
