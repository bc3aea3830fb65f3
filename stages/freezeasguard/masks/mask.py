"""The mask: its soft form, its gradients, and its rounding (paper, section 3.1).

Polarity, said once: 1 = frozen at the pretrained value, 0 = trainable. A mask is one number a unit (a tensor
in the paper; a row or a weight, see `granularity`), held as a vector [N] over the UNet's tensors in the order of
their sorted names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.granularity import n_frozen


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


def project_to_ratio(logits: Tensor, temperature: float, rho: float, iterations: int = 100) -> Tensor:
    """The logits shifted by one constant so that mean(m) = rho: Eq. 6 as a constraint, not a force.

    mean(m) grows with the shift, so Newton's method finds it, kept inside a shrinking bracket (a step that
    leaves the bracket, as on a saturated mask, is replaced by its middle). The ranking does not change.
    At rho = 0 and 1 there is nothing to find, and the logits stay.
    """
    if rho in (0, 1):
        return logits
    exact = logits.double()  # float32 would merge near-equal logits over many small shifts
    high = float(logits.abs().max()) + 40 * temperature
    low, shift = -high, 0.0
    for _ in range(iterations):
        m = soft_mask(exact + shift, temperature)
        excess = float(m.mean()) - rho
        if abs(excess) < 1e-13:
            break
        low, high = (shift, high) if excess < 0 else (low, shift)
        slope = float((m * (1 - m)).mean()) / temperature
        newton = shift - excess / slope if slope else low
        shift = newton if low < newton < high else (low + high) / 2
    return (exact + shift).to(logits)


def hard_mask(logits: Tensor, names: Sequence[str], rho: float) -> frozenset[str]:
    """The names of the round(rho N) tensors with the largest logits; ties fall to the earlier name."""
    if len(logits) != len(names):
        raise FreezeAsGuardError(f"{len(logits)} logits for {len(names)} tensor names")
    order = sorted(zip(logits.tolist(), names, strict=True), key=lambda pair: (-pair[0], pair[1]))
    return frozenset(name for _, name in order[: n_frozen(rho, len(names))])
