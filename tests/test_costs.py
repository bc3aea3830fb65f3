"""What a step costs: bytes by a closed form, the same in every run, and measuring changes no result."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from conftest import ToyDenoiser, random_latents
from freezeasguard import costs
from freezeasguard.costs import AllocatedBytes, Meter
from freezeasguard.models.diffusion import NoiseSchedule
from freezeasguard.settings.users import Finetuning
from freezeasguard.users.training import finetune

CONFIG = Finetuning(steps=3, batch_size=2, lr=1e-3)


def test_bytes_count_from_when_a_tensor_is_made_until_it_is_freed() -> None:
    there = torch.zeros(1000)
    with AllocatedBytes() as watch:
        first = there + 1  # 4000 bytes each
        second = first * 2
        views = [second[:10], second.view(10, 100), second.add_(1)]
        assert watch.peak == 3 * 4000
        del first
        third = torch.ones(500)  # where `first` was
        assert watch.peak == 3 * 4000
        del second, views
        fourth = third.new_zeros(2000)
        assert watch.peak == 4000 + 2000 + 8000
    assert len(fourth) == 2000


def test_backward_and_optimiser_are_counted() -> None:
    """AdamW's second step: the weight, its gradient and two moments at least, and few copies more."""
    weight = torch.nn.Parameter(torch.ones(100_000))
    optimizer = torch.optim.AdamW([weight], foreach=True)
    meter = Meter("cpu")
    for _ in range(3):
        with meter.step():
            weight.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    record = meter.record()
    assert 4 * weight.nbytes <= record["peak_bytes"] <= 7 * weight.nbytes
    assert record["steps"] == 3 and len(meter.seconds) == 2 and record["device"] == "cpu"


def test_a_step_takes_the_median_of_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 1, 10, 20, 22, 30, 110])  # a start and an end each; the second step, which is watched, a start
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    meter = Meter("cpu")
    for _ in range(4):
        with meter.step():
            pass
    assert meter.seconds == [1, 2, 80] and meter.record()["median_step_s"] == 2


def test_nothing_measured_is_null() -> None:
    record = Meter("cpu").record()
    assert record["steps"] == 0 and record["median_step_s"] is record["peak_bytes"] is None


def peak(unet: Any, schedule: NoiseSchedule, frozen: set[str]) -> int:
    meter, draws = Meter("cpu"), torch.Generator().manual_seed(0)
    finetune(unet, schedule, random_latents(4, seed=0), CONFIG, frozen=frozen, generator=draws, meter=meter)
    assert meter.steps == CONFIG.steps and meter.peak is not None
    return meter.peak


def test_frozen_tensors_need_no_memory_to_train_and_the_figure_is_reproducible(
    tiny_unet: Any, schedule: NoiseSchedule
) -> None:
    names = sorted(name for name, _ in tiny_unet.named_parameters())
    most = set(names[::10])
    peaks = [peak(copy.deepcopy(tiny_unet), schedule, frozen) for frozen in (set(), set(), set(names) - most)]
    assert peaks[0] == peaks[1] > peaks[2]
    weights = sum(p.nbytes for p in tiny_unet.parameters())
    assert peaks[0] > 4 * weights and peaks[2] < 3 * weights


def test_measuring_changes_no_result(schedule: NoiseSchedule) -> None:
    found = []
    for meter in (None, Meter("cpu")):
        toy = ToyDenoiser()
        draws = torch.Generator().manual_seed(0)
        losses = finetune(toy, schedule, random_latents(4, seed=0), CONFIG, generator=draws, meter=meter)
        found.append((losses, [p.detach().clone() for p in toy.parameters()]))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
