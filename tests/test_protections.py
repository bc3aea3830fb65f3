"""Methods through the one interface: a method of one's own, the seeds of draws, and what arms are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conftest import ToyDenoiser
from freezeasguard.arms import Arm
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.diffusion import named_tensors
from freezeasguard.models.protected import read_protected, tensor_shapes
from freezeasguard.protections import freezeasguard
from freezeasguard.protections.protect import Inputs, protect_case
from freezeasguard.protections.random_freezing import random_frozen
from freezeasguard.protections.registry import METHODS, Method
from freezeasguard.settings.params import parse_params
from freezeasguard.settings.profiles import profile_text
from freezeasguard.settings.resolve import protect_settings
from freezeasguard.workers import run_side_by_side


def inputs_of(arm: str, toy: ToyDenoiser, **params: Any) -> Inputs:
    """What the stage gives to an arm of the profile smoke, for the toy's tensors."""
    values = yaml.safe_load(profile_text("smoke")) | params
    values["cases"]["portraits"]["arms"] = ["pretrained", "full", arm]
    settings = protect_settings(parse_params(values, Path("params.yaml")), "portraits", Arm.parse(arm))
    inputs = Inputs(settings, Path(), Path(), Path())
    inputs.__dict__["tensors"] = {name: t.detach() for name, t in named_tensors(toy).items()}
    return inputs


def test_a_method_of_ones_own_is_a_file_and_a_line(
    toy: ToyDenoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/guard.py").write_text(
        "from freezeasguard.models.protected import Protected\n"
        "def protect(inputs):\n"
        "    settings = inputs.settings\n"
        "    n = round(settings.rho * len(inputs.tensors))\n"
        "    frozen = frozenset(sorted(inputs.tensors)[:n])\n"
        "    edited = {'speed': inputs.tensors['speed'] * settings.own['factor']}\n"
        "    return Protected(inputs.arm.method, frozen, edited, settings={'rho': settings.rho, **settings.own})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(METHODS, "mine", Method("Mine, {share}", "mine.guard", block="mine"))
    arm = Arm.parse("mine-40")
    assert (arm.method, arm.rho(0.3), arm.label(0.3)) == ("mine", 0.4, "Mine, 40%")
    inputs = inputs_of("mine-40", toy, methods={"mine": {"factor": 3}})
    assert inputs.settings.own == {"factor": 3} and inputs.settings.mask is None
    protect_case(inputs, tmp_path / "out")
    read = read_protected(tmp_path / "out", toy)
    assert read.method == "mine" and len(read.frozen) == 3 and read.settings == {"rho": 0.4, "factor": 3}
    assert torch.equal(read.edited["speed"], 3 * toy.speed.detach())


def frozen_of(arm: str, toy: ToyDenoiser, out: Path, **params: Any) -> frozenset[str]:
    protect_case(inputs_of(arm, toy, **params), out)
    return read_protected(out, toy).frozen


def test_every_draw_of_a_random_arm_has_a_seed_of_its_own(toy: ToyDenoiser, tmp_path: Path) -> None:
    shapes = tensor_shapes(named_tensors(toy))
    for seed in (0, 1):
        for draw in range(3):
            arm = f"random-50-draw{draw}" if draw else "random-50"
            expected = random_frozen(shapes, 0.5, torch.Generator().manual_seed(seed + 1000 * draw))
            assert frozen_of(arm, toy, tmp_path / "out", seed=seed) == expected


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_mask_written_is_that_of_the_runs_own_seed(seed: int, toy: ToyDenoiser, tmp_path: Path) -> None:
    """Further seeds are learned for the diagnostics alone."""
    inputs = inputs_of("zeroed_signal-50", toy, seed=seed)
    assert inputs.settings.mask is not None and inputs.settings.mask.diagnostic_seeds == 1
    masks = [freezeasguard.learn(inputs, inputs.settings.mask, seed + i, "zeroed_signal") for i in range(2)]
    own, other = (frozenset(mask.frozen(0.5)) for mask in masks)
    assert own != other and frozen_of("zeroed_signal-50", toy, tmp_path / "out", seed=seed) == own


@pytest.mark.parametrize("arm", ["magnitude-row", "attention-element", "random_parameters-row"])
def test_rules_that_choose_tensors_take_no_other_kind_of_mask(arm: str, toy: ToyDenoiser, tmp_path: Path) -> None:
    with pytest.raises(FreezeAsGuardError, match="chooses whole tensors, not granularity '(row|element)'"):
        protect_case(inputs_of(arm, toy), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("n", [1, 2])
def test_every_task_has_one_thread_however_many_workers(workers: int, n: int, tmp_path: Path) -> None:
    """Sums taken by two threads may differ in their last bit from those of one: no result may depend on workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:

        def task(name: str) -> Any:
            return lambda: (tmp_path / name).write_text(str(torch.get_num_threads()))

        run_side_by_side({str(i): task(str(i)) for i in range(n)}, workers, "cpu")
        assert [(tmp_path / str(i)).read_text() for i in range(n)] == ["1"] * n
    finally:
        torch.set_num_threads(before)
