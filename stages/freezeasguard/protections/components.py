"""Freeze a whole component of the UNet: the motivation of the paper (section 2.2, Table 1, Figure 4).

The paper names its components and no tensors. Our reading: "attention projectors" are to_q, to_k, to_v and to_out of
every attention, self and cross, with their biases; "conv. layers" every 2-d convolution, weight and bias, so that the
1x1 proj_in and proj_out of SD v1.x count and the linear ones of v2.1 do not; "time embeddings" the time_embedding
itself and each resnet's time_emb_proj. Two are ours, for anchors: "matrices" are every tensor but norms and biases, 99%
of the weights, and "outside attention" those of them that are no attention projector, which leaves users the attention.
All tensors of a component are frozen; there is no ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.protected import Protected, mask_sizes, tensor_shapes
from freezeasguard.protections.heuristics import is_of_kind
from freezeasguard.protections.protect import Inputs

PREFIX = "freeze_"


def is_of_convolution(name: str, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether the tensor's module holds a weight [out, in, height, width]."""
    return len(shapes.get(f"{name.rpartition('.')[0]}.weight", ())) == 4


def component_tensors(component: str, shapes: Mapping[str, Sequence[int]]) -> frozenset[str]:
    """All tensors of attention, convolutions, time_embedding, matrices or outside_attention.

    Raises:
        FreezeAsGuardError: the network has none.
    """
    belongs = {
        "matrices": lambda name: len(shapes[name]) > 1,
        "outside_attention": lambda name: len(shapes[name]) > 1 and not is_of_kind(name, "attention"),
        "convolutions": lambda name: is_of_convolution(name, shapes),
    }.get(component, lambda name: is_of_kind(name, component))
    found = frozenset(filter(belongs, shapes))
    if not found:
        raise FreezeAsGuardError(f"the network has no tensor of the component {component}; take {PREFIX}* off the arms")
    return found


def protect(inputs: Inputs) -> Protected:
    """Freeze the component that the arm is named after."""
    method, shapes = inputs.arm.method, tensor_shapes(inputs.tensors)
    frozen = component_tensors(method.removeprefix(PREFIX), shapes)
    by_name = Protected(method, frozen, settings={"rho": len(frozen) / len(shapes)})
    return replace(by_name, diagnostics=mask_sizes(by_name, shapes))
