"""The user step's update after backprop: `_foreach` against the loop of METHOD, section 3. Prints a ratio."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from freezeasguard.masks.bilevel import SimulatedUser
from freezeasguard.models.diffusion import load_unet, named_tensors

pytestmark = pytest.mark.benchmark
MODEL = Path(__file__).parents[2] / "data/models/tiny-1.5"


def best_of(n: int, prepare: Callable[[], list[Tensor]], work: Callable[[list[Tensor]], None]) -> float:
    """Shortest of n runs in seconds; what `prepare` makes is not timed."""
    times = []
    for _ in range(n):
        gradients = prepare()
        start = time.perf_counter()
        work(gradients)
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def test_user_update() -> None:
    torch.set_num_threads(1)
    weights = {name: p.detach() for name, p in named_tensors(load_unet(MODEL)).items()}
    names = sorted(weights)
    finetuned = {name: w + 0.01 for name, w in weights.items()}
    user = SimulatedUser.start(("illegal",), weights, finetuned, dict.fromkeys(names, 0.3))
    masks = {name: torch.tensor(0.3) for name in names}

    def gradients() -> list[Tensor]:
        return [torch.ones_like(weights[name]) for name in names]

    def foreach(grads: list[Tensor]) -> None:
        user.user_update(names, grads, [0.7] * len(names), 1e-3)

    def loop(grads: list[Tensor]) -> None:
        for name, gradient in zip(names, grads, strict=True):
            kept = 1 - masks[name]
            user.delta[name] += 1e-3 * gradient * kept
            user.mixed[name] -= 1e-3 * gradient * kept * kept

    slow, fast = best_of(20, gradients, loop), best_of(20, gradients, foreach)
    ratio = slow / fast
    print(f"\nuser update, {len(names)} tensors: loop {1e3 * slow:.1f} ms, foreach {1e3 * fast:.1f} ms: {ratio:.1f}x")
    assert slow > 0 and fast > 0
