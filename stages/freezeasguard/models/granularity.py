"""What a mask decides on: a tensor (the paper), a row (an output channel), or a single weight.

Rows and weights are an extension of our own (METHOD, section 3). A mask over them is one value a *unit*,
kept by tensor name: [1] for a tensor, [out_channels] for rows, [numel] for weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError

Granularity = Literal["tensor", "row", "element"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)


def check_freeze_ratio(rho: float) -> float:
    if not 0 <= rho <= 1:
        raise FreezeAsGuardError(f"rho is {rho}; the share of frozen tensors lies in 0..1 (0.3 = 30%)")
    return rho


def n_frozen(rho: float, n_tensors: int) -> int:
    """Exactly round(rho N): how many tensors a mask freezes."""
    return round(check_freeze_ratio(rho) * n_tensors)


def check_names(frozen: Iterable[str], names: Collection[str]) -> None:
    """Refuse a mask that names tensors which the network lacks."""
    if unknown := sorted(set(frozen) - set(names)):
        raise FreezeAsGuardError(
            f"the mask names {len(unknown)} tensors that the network lacks, e.g. {unknown[0]}; "
            "it was made for another model: learn a mask for this one"
        )


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
    """bool [n]: the round(rho n) units with the largest values; ties fall to the earlier unit.

    By selecting the smallest of them, not by sorting: of 860 million weights that takes seconds, and no index of each.
    """
    import numpy as np

    values, n = flat.detach().cpu().numpy(), n_frozen(rho, len(flat))
    if n == 0:
        return torch.zeros(len(flat), dtype=torch.bool)
    smallest = np.partition(values, len(values) - n)[len(values) - n]
    chosen = values > smallest
    chosen[np.flatnonzero(values == smallest)[: n - chosen.sum()]] = True
    return torch.from_numpy(chosen)


def pack_bits(units: Tensor) -> Tensor:
    """bool [n] -> uint8 [ceil(n / 8)], first unit in the lowest bit."""
    import numpy as np

    return torch.from_numpy(np.packbits(units.cpu().numpy(), bitorder="little"))


def unpack_bits(packed: Tensor, n: int) -> Tensor:
    """The n units that `pack_bits` stored."""
    import numpy as np

    if packed.dtype != torch.uint8 or tuple(packed.shape) != ((n + 7) // 8,):
        raise FreezeAsGuardError(
            f"{packed.numel()} bytes of mask ({packed.dtype}) for {n} units, which need {(n + 7) // 8} (uint8)"
        )
    return torch.from_numpy(np.unpackbits(packed.cpu().numpy(), count=n, bitorder="little")).bool()


# --- tensors and masks by name ---------------------------------------------------------------------------------


def check_units(units: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], granularity: str) -> None:
    """Refuse a mask whose names or numbers of units are not those of the network with these shapes."""
    check_granularity(granularity)
    check_names(units, shapes)
    for name, chosen in units.items():
        expected = n_units(shapes[name], granularity)
        if chosen.dtype != torch.bool or tuple(chosen.shape) != (expected,):
            raise FreezeAsGuardError(
                f"the mask of {name} is {chosen.dtype} {list(chosen.shape)}; granularity {granularity!r} asks for "
                f"bool [{expected}], as the tensor is {list(shapes[name])}"
            )


VALUES = (torch.float32, torch.float16, torch.bfloat16)
"""What weights are stored in; `model_hash` sees every bit of these."""


def check_values(where: object, values: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], remedy: str) -> None:
    """Refuse weights that are not those of a network with these shapes, or are not finite.

    Args:
        where: the file or method that they are of, as the message names it.
    """
    for name, value in values.items():
        odd = None
        if name not in shapes:
            odd = "is no tensor of this model"
        elif list(value.shape) != list(shapes[name]):
            odd = f"is {list(value.shape)}, the model's {list(shapes[name])}"
        elif value.dtype not in VALUES:
            odd = f"is {value.dtype}; weights are float32, float16 or bfloat16"
        elif not value.isfinite().all():
            odd = "has values that are not finite"
        if odd:
            raise FreezeAsGuardError(f"{where}: {name} {odd}; {remedy}")


def normal_form(
    frozen: Collection[str], frozen_units: Mapping[str, Tensor]
) -> tuple[frozenset[str], dict[str, Tensor]]:
    """The names of the tensors frozen whole, and the units [n_units] of those frozen in part, by sorted name.

    Each mask has one such form: units that are all frozen become a name, units of which none is frozen go.
    """
    if twice := sorted(set(frozen) & frozen_units.keys()):
        raise FreezeAsGuardError(f"the mask freezes {twice[0]} whole and in part; name it once")
    whole = {name for name, units in frozen_units.items() if units.all()}
    parts = {name: units for name, units in sorted(frozen_units.items()) if units.any() and name not in whole}
    return frozenset(frozen) | whole, parts


def mask_digest(frozen: Collection[str], frozen_units: Mapping[str, Tensor], granularity: str) -> str:
    """SHA-256 of a mask; equal for equal masks, however they are written down."""
    whole, parts = normal_form(frozen, frozen_units)
    digest = hashlib.sha256("\n".join(sorted(whole)).encode())
    for name, units in parts.items():
        digest.update(f"\n{granularity} {name} {len(units)} ".encode() + pack_bits(units).numpy().tobytes())
    return digest.hexdigest()


def mask_counts(
    frozen: Collection[str],
    frozen_units: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    granularity: str,
) -> dict[str, int | float]:
    """`n_units` of the network, `n_frozen` of them, and the `share_of_parameters_frozen`: of single weights."""
    units = {name: n_units(shape, granularity) for name, shape in shapes.items()}
    weights = {name: n_units(shape, "element") for name, shape in shapes.items()}
    counts = {name: units[name] for name in frozen} | {n: int(part.sum()) for n, part in frozen_units.items()}
    frozen_weights = sum(weights[name] // units[name] * count for name, count in counts.items())
    return {
        "n_units": sum(units.values()),
        "n_frozen": sum(counts.values()),
        "share_of_parameters_frozen": frozen_weights / sum(weights.values()),
    }
