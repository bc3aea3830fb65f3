"""The mask: its soft form, its gradients, and its rounding (paper, section 3.1).

Polarity, said once: 1 = frozen at the pretrained value, 0 = trainable. A mask is one number a unit (a tensor
in the paper; a row or a weight, see `granularity`), held as a vector [N] over the UNet's tensors in the order of
their sorted names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.granularity import check_freeze_ratio, n_frozen

CHUNK = 2**22
"""Units that are computed at once, of the 860 million weights of SD v1.5; a mask of tensors or rows is one piece."""

CACHED = 2**17
"""Of these, how many a CPU's cache holds in float64."""

SAMPLE = 2**16
"""Units at least that stand for all where a start is sought."""


def soft_mask(logits: Tensor, temperature: float) -> Tensor:
    """m = sigmoid(w / T) [N] in 0..1; the smaller T, the nearer to 0 or 1 (paper, section 3.1)."""
    return torch.sigmoid(logits / temperature)


def mask_slope(logits: Tensor, temperature: float, derivative: str = "exact") -> Tensor:
    """dm/dw [N].

    `exact`: m (1 - m) / T, what autograd gives and the authors' code computes.
    `as_printed`: sigmoid(w/T) sigmoid(1 - w/T) / T, the paper's Eq. 8, a misprint of sigmoid(-w/T).
    """
    m = soft_mask(logits, temperature)
    if derivative == "exact":
        return m * (1 - m) / temperature
    if derivative == "as_printed":
        return m * torch.sigmoid(1 - logits / temperature) / temperature
    raise FreezeAsGuardError(f"mask.derivative is {derivative!r}; use exact or as_printed")


def logit_gradients(alignments: Tensor, logits: Tensor, temperature: float, derivative: str = "exact") -> Tensor:
    """dL/dw [N] from the alignments <dL/dtheta(m)_i, delta_i> [N] (paper, Eq. 8 and 11-12).

    theta(m) = m theta_pre + (1 - m) theta_ft, so dtheta(m)/dm = theta_pre - theta_ft = delta: the scalar
    product holds all of the gradient that the logit needs, and no second network goes on the tape.
    """
    return alignments * mask_slope(logits, temperature, derivative)


def sparsity_gradient(
    logits: Tensor, temperature: float, rho: float, weight: float, derivative: str = "exact"
) -> Tensor:
    """Gradient [N] of weight (mean(m) - rho)^2 (paper, Eq. 6)."""
    excess = soft_mask(logits, temperature).mean() - rho
    return weight * 2 * excess / len(logits) * mask_slope(logits, temperature, derivative)


def chunkwise(function: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
    """`function(*vectors)` [N] of vectors [N], elementwise, a piece at a time: what it holds meanwhile stays small."""
    if len(vectors[0]) <= CHUNK:
        return function(*vectors)
    out = torch.empty_like(vectors[0])
    for part, *parts in zip(*(vector.split(CHUNK) for vector in (out, *vectors)), strict=True):
        part.copy_(function(*parts))
    return out


def _mean_and_slope(logits: Tensor, temperature: float, shift: float) -> tuple[float, float]:
    """mean(m) of the shifted logits and its derivative in the shift, in float64 whatever the logits are in."""
    total = torch.zeros(2, dtype=torch.float64, device=logits.device)
    for part in logits.split(CACHED if len(logits) > CHUNK and logits.device.type == "cpu" else CHUNK):
        m = (part.double() + shift).div_(temperature).sigmoid_()  # a sum of its own: the logits may be float64 already
        total += torch.stack([m.sum(), (1 - m).mul_(m).sum()])
    mean, slope = (total / len(logits)).tolist()
    return mean, slope / temperature


def ratio_shift(logits: Tensor, temperature: float, rho: float, start: float = 0.0, iterations: int = 100) -> float:
    """The constant that, added to the logits, makes mean(m) = rho in 0..1, both ends excluded.

    mean(m) grows with the shift, so Newton's method finds it, kept inside a shrinking bracket (a step that
    leaves the bracket, as on a saturated mask, is replaced by its middle).
    """
    high = float(logits.abs().max()) + 40 * temperature
    low, shift = -high, start
    for _ in range(iterations):
        mean, slope = _mean_and_slope(logits, temperature, shift)
        excess = mean - rho
        if abs(excess) < 1e-13:
            break
        low, high = (shift, high) if excess < 0 else (low, shift)
        newton = shift - excess / slope if slope else low
        shift = newton if low < newton < high else (low + high) / 2
    return shift


def project_to_ratio(logits: Tensor, temperature: float, rho: float) -> Tensor:
    """The logits shifted by one constant so that mean(m) = rho: Eq. 6 as a constraint, not a force.

    The ranking does not change. At rho = 0 and 1 there is nothing to find, and the logits stay. Of many logits an
    even sample is shifted first: from its shift two or three passes over all of them are enough.
    """
    if rho in (0, 1):
        return logits
    n_between = len(logits) // SAMPLE
    start = ratio_shift(logits[::n_between], temperature, rho) if len(logits) > CHUNK else 0.0
    shift = ratio_shift(logits, temperature, rho, start)
    # float32 would merge near-equal logits over many small shifts
    return chunkwise(lambda part: (part.double() + shift).to(part), logits)


def hard_mask(logits: Tensor, names: Sequence[str], rho: float) -> frozenset[str]:
    """The names of the round(rho N) tensors with the largest logits; ties fall to the earlier name."""
    if len(logits) != len(names):
        raise FreezeAsGuardError(f"{len(logits)} logits for {len(names)} tensor names")
    order = sorted(zip(logits.tolist(), names, strict=True), key=lambda pair: (-pair[0], pair[1]))
    return frozenset(name for _, name in order[: n_frozen(rho, len(names))])


def hard_mask_by_parameters(logits: Tensor, sizes: Mapping[str, int], rho: float) -> frozenset[str]:
    """All tensors but those worth training within a budget of (1 - rho) of all single weights.

    A knapsack of worth -w and weight `sizes`, packed greedily: by worth a weight, each tensor that still fits and that
    is worth more than nothing. What is packed is worth at most one tensor's worth less than the best there is.

    Args:
        logits: [N], in the order of `sizes`.
    """
    room = (1 - check_freeze_ratio(rho)) * sum(sizes.values())
    worth = dict(zip(sizes, (-logits).tolist(), strict=True))
    trained = set()
    for name in sorted(sizes, key=lambda name: (-worth[name] / sizes[name], name)):
        if worth[name] > 0 and sizes[name] <= room:
            trained.add(name)
            room -= sizes[name]
    return frozenset(sizes.keys() - trained)
