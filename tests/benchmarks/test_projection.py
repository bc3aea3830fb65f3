"""A mask of 10 million weights: projected and selected, against full float64 copies and a sort. Prints ratios."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from freezeasguard.masks.mask import project_to_ratio, soft_mask
from freezeasguard.models.granularity import n_frozen, top_units

pytestmark = pytest.mark.benchmark


def projected_whole(logits: Tensor, temperature: float, rho: float) -> Tensor:
    """As it was: every iteration over a float64 copy of all logits, from a shift of 0."""
    exact = logits.double()
    high = float(logits.abs().max()) + 40 * temperature
    low, shift = -high, 0.0
    for _ in range(100):
        m = soft_mask(exact + shift, temperature)
        excess = float(m.mean()) - rho
        if abs(excess) < 1e-13:
            break
        low, high = (shift, high) if excess < 0 else (low, shift)
        slope = float((m * (1 - m)).mean()) / temperature
        newton = shift - excess / slope if slope else low
        shift = newton if low < newton < high else (low + high) / 2
    return (exact + shift).to(logits)


def sorted_top(flat: Tensor, rho: float) -> Tensor:
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[torch.sort(flat, descending=True, stable=True).indices[: n_frozen(rho, len(flat))]] = True
    return chosen


def seconds(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def test_ten_million_logits() -> None:
    torch.set_num_threads(1)
    draw = torch.randn(10**7, generator=torch.Generator().manual_seed(0))
    print()
    for name, logits in {"start": 2e-6 * draw, "learned": 0.4 * draw - 0.3}.items():
        slow, expected = seconds(lambda logits=logits: projected_whole(logits, 0.2, 0.3))
        fast, found = seconds(lambda logits=logits: project_to_ratio(logits, 0.2, 0.3))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
        print(f"projection, {name}: {slow:.2f} s before, {fast:.2f} s after: {slow / fast:.1f}x")
    slow, expected = seconds(lambda: sorted_top(draw, 0.3))
    fast, found = seconds(lambda: top_units(draw, 0.3))
    assert torch.equal(found, expected)
    print(f"selection: {slow:.2f} s before, {fast:.2f} s after: {slow / fast:.1f}x")
