"""What holds the units of a mask at their published values, under any trainer.

A tensor frozen whole requires no gradient. Of a tensor frozen in part (rows, single weights) autograd still
makes the gradient: the frozen units' share of it is zeroed as it is made, before any clipping and before any
moment sees it, and their values are put back after every optimiser step, because decoupled weight decay moves
weights whose gradient is zero.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from freezeasguard.models.diffusion import named_tensors
from freezeasguard.models.granularity import check_names, check_units, normal_form, spread_over_weights


def freeze(unet: torch.nn.Module, frozen: Collection[str]) -> dict[str, torch.nn.Parameter]:
    """Freeze the tensors named and return the others, by sorted name.

    A frozen tensor requires no gradient: autograd keeps no activation for it, stops early where nothing
    before it trains, and no optimiser ever sees it.
    """
    parameters: dict[str, Any] = named_tensors(unet)
    check_names(frozen, parameters.keys())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in frozen)
        parameter.grad = None
    return {name: parameters[name] for name in sorted(parameters) if name not in frozen}


class Frozen:
    """A network under its mask; `trainable` is what an optimiser may have, by sorted name.

        with Frozen(unet, names, units, "row") as frozen:
            optimizer = torch.optim.AdamW(frozen.trainable.values())
            frozen.guard(optimizer)
            ...  # any loop: accumulate, clip, optimizer.step()

    Make it where the network stands ready to train: the values it holds are those it finds, on their device
    and in their type. A mask of whole tensors costs nothing during training. Any other keeps a copy of the
    frozen values and one byte a weight (rows: a row), of the tensors frozen in part alone.
    """

    def __init__(
        self,
        unet: torch.nn.Module,
        frozen: Collection[str] = (),
        frozen_units: Mapping[str, Tensor] | None = None,
        granularity: str = "tensor",
    ) -> None:
        """Freeze.

        Args:
            frozen: names of the tensors frozen whole.
            frozen_units: bool [n_units] by name, of those frozen in part; True = frozen.
        Raises:
            FreezeAsGuardError: names or numbers of units that are not the network's; nothing was changed.
        """
        tensors = named_tensors(unet)
        check_units(frozen_units or {}, {name: tensor.shape for name, tensor in tensors.items()}, granularity)
        whole, parts = normal_form(frozen, frozen_units or {})
        self.trainable = freeze(unet, whole)
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []
        self._hooks: list[Any] = []
        for name, units in parts.items():
            parameter = self.trainable[name]
            mask = spread_over_weights(units, parameter.shape, granularity).to(parameter.device)
            self._held.append((parameter, mask, parameter.detach()[mask.expand_as(parameter)]))
            # A hook on the tensor, not on its .grad: it comes before gradients are summed or averaged over devices.
            self._hooks.append(parameter.register_hook(lambda gradient, mask=mask: gradient.masked_fill(mask, 0)))

    @torch.no_grad()
    def restore(self) -> None:
        """Put the frozen units back, bit for bit."""
        for parameter, mask, values in self._held:
            parameter.masked_scatter_(mask, values)

    def guard(self, optimizer: torch.optim.Optimizer) -> None:
        """Restore after every step of this optimiser."""
        if self._held:
            self._hooks.append(optimizer.register_step_post_hook(lambda *_: self.restore()))

    def release(self) -> None:
        """Stop enforcing what is frozen in part; whole tensors stay frozen until the next `freeze`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __enter__(self) -> Frozen:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
