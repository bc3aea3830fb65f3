"""Random-rho: freeze a share of the network drawn blindly (paper, section 4), and its controls.

A learned mask may owe its effect to how much it freezes, not to what. Each kind of mask so has a blind twin of
the same size: by number of tensors, by their share of single weights, by rows, by single weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from freezeasguard.models.granularity import check_freeze_ratio, n_frozen, n_units, split_units
from freezeasguard.models.protected import Protected, mask_sizes, tensor_shapes
from freezeasguard.protections.protect import Inputs

DRAW_SEEDS = 1000
"""Between the seeds of an arm's draws: those of experiments, which count in ones, do not meet them."""


def random_frozen(names: Iterable[str], rho: float, generator: torch.Generator) -> frozenset[str]:
    """Exactly round(rho N) names, each set of that size equally likely; the order of `names` is idle."""
    ordered = sorted(names)
    order = torch.randperm(len(ordered), generator=generator).tolist()
    return frozenset(ordered[i] for i in order[: n_frozen(rho, len(ordered))])


def random_frozen_units(
    shapes: Mapping[str, Sequence[int]], rho: float, granularity: str, generator: torch.Generator
) -> dict[str, Tensor]:
    """Exactly round(rho N) of the whole network's N units, each set of that size equally likely.

    For tensors this is `random_frozen`, draw for draw. The draw takes 8 bytes a unit while it lasts.

    Returns:
        bool [n_units] for every name; a tensor may have none frozen, or all.
    """
    total = sum(n_units(shape, granularity) for shape in shapes.values())
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[torch.randperm(total, generator=generator)[: n_frozen(rho, total)]] = True
    return split_units(chosen, shapes, granularity)


def random_frozen_by_parameters(
    shapes: Mapping[str, Sequence[int]], share: float, generator: torch.Generator
) -> frozenset[str]:
    """Random whole tensors that hold as near as possible to `share` of all single weights.

    The tensors are walked in a random order, and each that still fits under the share is frozen; at last the
    smallest one left out (the first of them in that order) is frozen too, if that ends nearer. So no tensor could
    be added to come nearer, and the share is missed by at most half the smallest tensor left out. Towards the end
    of the walk large tensors no longer fit: each is frozen a little less often than a small one.
    """
    sizes = {name: n_units(shape, "element") for name, shape in shapes.items()}
    room = check_freeze_ratio(share) * sum(sizes.values())
    ordered = sorted(sizes)
    frozen: set[str] = set()
    left_out: list[str] = []
    for i in torch.randperm(len(ordered), generator=generator).tolist():
        name = ordered[i]
        if sizes[name] <= room:
            frozen.add(name)
            room -= sizes[name]
        else:
            left_out.append(name)
    if left_out and sizes[smallest := min(left_out, key=sizes.__getitem__)] - room < room:
        frozen.add(smallest)
    return frozenset(frozen)


def protect(inputs: Inputs) -> Protected:
    """Freeze drawn tensors, rows or weights; or, for `random_parameters`, tensors up to a share of all weights."""
    settings, arm, shapes = inputs.settings, inputs.arm, tensor_shapes(inputs.tensors)
    seed = settings.seed + DRAW_SEEDS * arm.draw
    generator = torch.Generator().manual_seed(seed)
    told: dict[str, Any] = {"rho": settings.rho, "seed": seed}
    if arm.method == "random_parameters":
        inputs.whole_tensors()
        frozen = random_frozen_by_parameters(shapes, settings.rho, generator)
        drawn = Protected("random", frozen, settings={**told, "by": "parameters"})
    else:
        units = random_frozen_units(shapes, settings.rho, arm.granularity, generator)
        drawn = Protected("random", settings=told, granularity=arm.granularity, frozen_units=units)
    return replace(drawn, diagnostics=mask_sizes(drawn, shapes))
