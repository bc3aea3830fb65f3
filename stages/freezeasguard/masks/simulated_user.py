"""The lower level of Algorithm 1: a user who fine-tunes under the soft mask, and how gradients reach them.

What lives in memory is, for each user, `mixed` = m theta_pre + (1 - m) theta_ft (the weights that the UNet runs
with) and `delta` = theta_pre - theta_ft; theta_ft itself is mixed - m delta. A user of AdamW keeps its two moments
beside them. Gradients are consumed bucket by bucket while backprop produces them, so that no second full-size
copy of them ever exists. Of two users one may rest on the host (`exchange`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.granularity import check_names, sum_over_units

BUCKET_BYTES = 64 * 2**20
"""Gradients held at once before they are consumed; at tiny scale one bucket holds the whole UNet."""

BETAS, EPS, WEIGHT_DECAY = (0.9, 0.999), 1e-8, 1e-2
"""The real user's AdamW (METHOD, section 5), but for clipping: streamed gradients have no global norm, and
AdamW's step hardly depends on their scale."""

Factors = Sequence[float] | Sequence[Tensor]
"""What multiplies each of some tensors: numbers, or tensors that broadcast against them (rows, weights)."""


class GradientStream:
    """Hands over gradients in buckets as backprop completes them, and frees them.

    Used as a context around one backward pass. A tensor's hook fires when its gradient is final and no
    pending backward node needs its value, so that `consume` may update it in place.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        consume: Callable[[list[str], list[Tensor]], None],
        bucket_bytes: int | None = None,
    ) -> None:
        self._parameters = parameters
        self._consume = consume
        self._bucket_bytes = BUCKET_BYTES if bucket_bytes is None else bucket_bytes
        self._bucket: dict[str, Tensor] = {}
        self._held = 0
        self.peak_bytes = 0

    def __enter__(self) -> GradientStream:
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(name))
            for name, parameter in self._parameters.items()
        ]
        return self

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            parameter.grad = None
            self._bucket[name] = gradient
            self._held += gradient.nbytes
            self.peak_bytes = max(self.peak_bytes, self._held)
            if self._held >= self._bucket_bytes:
                self.flush()

        return take

    @torch.no_grad()
    def flush(self) -> None:
        """Hand over what is held: the gradients of one backward pass must not meet the next one's."""
        if self._bucket:
            self._consume(list(self._bucket), list(self._bucket.values()))
        self._bucket = {}
        self._held = 0

    def __exit__(self, error_type: Any, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        if error_type is None:
            self.flush()


def _beside(factors: Factors, tensors: Sequence[Tensor]) -> list[Any]:
    """The factors on the tensors' devices."""
    return [f.to(t.device) if isinstance(f, Tensor) else f for f, t in zip(factors, tensors, strict=True)]


@dataclass
class SimulatedUser:
    """A user who fine-tunes on `sides` under the soft mask. Tensors by name."""

    sides: tuple[str, ...]
    mixed: dict[str, Tensor]
    delta: dict[str, Tensor]
    moments: tuple[dict[str, Tensor], dict[str, Tensor]] = field(default_factory=lambda: ({}, {}))
    """Running means of g and g^2 of a user of AdamW; empty for gradient descent."""
    n_steps: int = 0

    @classmethod
    @torch.no_grad()
    def start(
        cls,
        sides: tuple[str, ...],
        pretrained: Mapping[str, Tensor],
        finetuned: Mapping[str, Tensor],
        mask: Mapping[str, float] | Mapping[str, Tensor],
        delta_dtype: torch.dtype = torch.float32,
    ) -> SimulatedUser:
        """Mix theta_pre and theta_ft; tensors that fine-tuning left alone may be absent from `finetuned`.

        Args:
            mask: m by name: a number, or a tensor that broadcasts against the weights.
        """
        check_names(finetuned, pretrained)
        mixed: dict[str, Tensor] = {}
        delta: dict[str, Tensor] = {}
        for name in sorted(pretrained):
            before = pretrained[name].detach()
            after = finetuned.get(name, before).to(before)
            if after.shape != before.shape:
                raise FreezeAsGuardError(
                    f"fine-tuned {name} is {tuple(after.shape)}, the model's {tuple(before.shape)}"
                )
            difference = before - after
            if delta_dtype not in (torch.float32, before.dtype):
                difference = difference.to(delta_dtype)
            delta[name] = difference
            (m,) = _beside([mask[name]], [before])
            mixed[name] = after + m * (before - after)
        return cls(sides, mixed, delta)

    def user_update(self, names: list[str], gradients: list[Tensor], trainable: Factors, lr: float) -> None:
        """One gradient-descent step of the user (paper, Eq. 9 and 10); consumes `gradients`.

        theta_ft -= lr g (1 - m), with `trainable` = 1 - m for each name.
        """
        trainable = _beside(trainable, gradients)
        torch._foreach_mul_(gradients, [lr * t for t in trainable])
        self._move_finetuned(names, gradients, trainable)

    def adamw_update(self, names: list[str], gradients: list[Tensor], trainable: Factors, lr: float) -> None:
        """One step of a user of AdamW whose rate is lr (1 - m); consumes `gradients`. `n_steps` counts this step.

        theta_ft -= (1 - m) step,  step = lr (mean_g / (sqrt(mean_g2) + eps) + decay theta_ft): where m = 0 this is
        `torch.optim.AdamW`, where m = 1 nothing moves. The plain step of the gradient g (1 - m) would not do: AdamW
        forgets its scale, so that weights which are all but frozen would run at the full rate, unseen by the loss
        at the mixed weights, until theta_ft were no fine-tuned model any more.
        """
        trainable = _beside(trainable, gradients)
        first, second = self._moments(names, gradients)
        torch._foreach_lerp_(first, gradients, 1 - BETAS[0])
        torch._foreach_mul_(second, BETAS[1])
        torch._foreach_addcmul_(second, gradients, gradients, 1 - BETAS[1])
        root = torch._foreach_sqrt(second)
        torch._foreach_div_(root, (1 - BETAS[1] ** self.n_steps) ** 0.5)
        torch._foreach_add_(root, EPS)
        step = list(torch._foreach_div(first, root))
        torch._foreach_mul_(step, lr / (1 - BETAS[0] ** self.n_steps))
        torch._foreach_add_(step, self._finetuned(names, trainable), alpha=lr * WEIGHT_DECAY)
        torch._foreach_mul_(step, trainable)
        self._move_finetuned(names, step, trainable)

    def start_moments(self) -> None:
        """Zero moments, where the weights are."""
        for moment in self.moments:
            moment.update({name: torch.zeros_like(w, pin_memory=w.is_pinned()) for name, w in self.mixed.items()})

    def pin(self) -> None:
        """Into pages of the host's memory that stay where they are, which a GPU copies at full speed."""
        for tensors in (self.mixed, self.delta):
            tensors.update({name: tensor.pin_memory() for name, tensor in tensors.items()})

    def _moments(self, names: list[str], like: list[Tensor]) -> list[list[Tensor]]:
        """The running means of g and of g^2, zero at the start."""
        for name, g in zip(names, like, strict=True):
            if name not in self.moments[0]:
                for moment in self.moments:
                    moment[name] = torch.zeros_like(g)
        return [[moment[name] for name in names] for moment in self.moments]

    def _finetuned(self, names: list[str], trainable: list[Any]) -> list[Tensor]:
        """theta_ft = mixed - m delta."""
        mixed = [self.mixed[name] for name in names]
        delta = [self.delta[name].to(w) for name, w in zip(names, mixed, strict=True)]
        return list(torch._foreach_add(torch._foreach_mul(delta, [t - 1 for t in trainable]), mixed))

    def _move_finetuned(self, names: list[str], step: list[Tensor], trainable: list[Any]) -> None:
        """theta_ft -= step:  delta += step;  mixed -= (1 - m) step (Eq. 9 and 10). Consumes `step`."""
        delta = [self.delta[name] for name in names]
        if delta[0].dtype == step[0].dtype:
            torch._foreach_add_(delta, step)
        else:
            for d, s in zip(delta, step, strict=True):
                d.add_(s.to(d))
        torch._foreach_mul_(step, trainable)
        torch._foreach_sub_([self.mixed[name] for name in names], step)

    def alignments(self, names: list[str], gradients: list[Tensor], granularity: str = "tensor") -> Tensor:
        """<g, delta> over each unit, the names' units one after the other [sum of n_units]; consumes `gradients`."""
        delta = [self.delta[name].to(g) for name, g in zip(names, gradients, strict=True)]
        if granularity == "tensor":
            return torch.stack([torch.dot(g.flatten(), d.flatten()) for g, d in zip(gradients, delta, strict=True)])
        torch._foreach_mul_(gradients, delta)
        return torch.cat([sum_over_units(product, granularity) for product in gradients])

    @torch.no_grad()
    def move_mask(self, names: Sequence[str], change: Factors) -> None:
        """mixed += (m_new - m_old) delta."""
        bucket: list[tuple[str, Any]] = []
        held = 0
        for index, (name, by) in enumerate(zip(names, change, strict=True)):
            bucket.append((name, by))
            held += self.delta[name].nbytes
            if held >= BUCKET_BYTES or index == len(names) - 1:
                mixed = [self.mixed[n] for n, _ in bucket]
                delta = [self.delta[n].to(self.mixed[n]) for n, _ in bucket]
                torch._foreach_add_(mixed, torch._foreach_mul(delta, _beside([b for _, b in bucket], mixed)))
                bucket, held = [], 0


@torch.no_grad()
def exchange(awake: Sequence[dict[str, Tensor]], resting: Sequence[dict[str, Tensor]]) -> None:
    """Two users change places: tensor by tensor each takes the other's storage, on the device or on the host.

    So neither memory ever holds more than one tensor beside what it held, and none is allocated anew.
    """
    for leaving, coming in zip(awake, resting, strict=True):
        for name, there in leaving.items():
            spare, here = there.clone(), coming[name]
            there.copy_(here, non_blocking=True)
            here.copy_(spare, non_blocking=True)
            leaving[name], coming[name] = here, there
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # what the host now holds may be read there
