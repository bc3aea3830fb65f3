"""Masks by rule of thumb: what a mask must beat beside a random one.

Each rule names exactly round(rho N) tensors and knows nothing of the data. `magnitude` takes the largest
weights; the block rules take one kind of layer, known by the tensor names of a diffusers UNet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.attention import PROJECTIONS
from freezeasguard.models.granularity import n_frozen
from freezeasguard.models.protected import Protected, mask_sizes, tensor_shapes
from freezeasguard.protections.protect import Inputs

KINDS: Mapping[str, frozenset[str]] = {
    "attention": PROJECTIONS,
    # proj_in and proj_out of a transformer are left out: 1x1 convolutions in SD v1.x, linear in v2.1.
    "convolutions": frozenset({"conv_in", "conv_out", "conv1", "conv2", "conv_shortcut", "conv"}),
    "time_embedding": frozenset({"time_embedding", "time_emb_proj"}),
}
"""A tensor is of a kind if one of its name's parts is listed: `down_blocks.0.resnets.0.conv1.weight`."""

RULES = ("magnitude", *KINDS)


def is_of_kind(name: str, kind: str) -> bool:
    return not KINDS[kind].isdisjoint(name.split("."))


def largest_tensors(tensors: Mapping[str, Tensor], rho: float) -> frozenset[str]:
    """The round(rho N) names with the largest mean |theta|; ties fall to the earlier name."""
    size = {name: float(tensor.detach().double().abs().mean()) for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-size[name], name))
    return frozenset(order[: n_frozen(rho, len(order))])


def kind_first(kind: str, names: Iterable[str], rho: float, generator: torch.Generator) -> frozenset[str]:
    """Exactly round(rho N) names, those of one kind before all others.

    Where the kind has more, those frozen are drawn from it; where it has fewer, the rest is drawn from the
    other tensors. The order of `names` is idle.
    """
    ordered = sorted(names)
    drawn = [ordered[i] for i in torch.randperm(len(ordered), generator=generator).tolist()]
    drawn.sort(key=lambda name: not is_of_kind(name, kind))  # stable: the random order holds on either side
    return frozenset(drawn[: n_frozen(rho, len(ordered))])


def heuristic_frozen(
    rule: str, tensors: Mapping[str, Tensor], rho: float, generator: torch.Generator
) -> frozenset[str]:
    """The round(rho N) names that a rule freezes; `magnitude` draws nothing.

    Raises:
        FreezeAsGuardError: an unknown rule, or a network without a tensor of its kind.
    """
    if rule not in RULES:
        raise FreezeAsGuardError(f"the heuristic is {rule!r}; use {', '.join(RULES)}")
    if rule == "magnitude":
        return largest_tensors(tensors, rho)
    if not any(is_of_kind(name, rule) for name in tensors):
        raise FreezeAsGuardError(
            f"the network has no tensor of the kind {rule} ({', '.join(sorted(KINDS[rule]))}); use magnitude"
        )
    return kind_first(rule, tensors, rho, generator)


def protect(inputs: Inputs) -> Protected:
    """Freeze by the rule of thumb that the arm is named after."""
    inputs.whole_tensors()
    settings, rule = inputs.settings, inputs.arm.method
    generator = torch.Generator().manual_seed(settings.seed)
    frozen = heuristic_frozen(rule, inputs.tensors, settings.rho, generator)
    by_rule = Protected(rule, frozen, settings={"rho": settings.rho, "seed": settings.seed})
    return replace(by_rule, diagnostics=mask_sizes(by_rule, tensor_shapes(inputs.tensors)))
