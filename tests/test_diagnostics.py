"""What a mask's diagnostics say, and the controls beside it, for tensors, rows and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from freezeasguard.arms import Arm
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.masks.bilevel import LearnedMask, MaskHistory
from freezeasguard.masks.diagnostics import (
    mask_diagnostics,
    overlap_of_units,
    rank_correlation,
    significant,
)
from freezeasguard.models.diffusion import load_unet, named_tensors
from freezeasguard.models.latents import CaseData
from freezeasguard.models.protected import Protected, read_protected
from freezeasguard.protections import freezeasguard
from freezeasguard.protections.protect import Inputs, protect_case
from freezeasguard.settings.params import parse_params
from freezeasguard.settings.profiles import profile_text
from freezeasguard.settings.resolve import protect_settings
from freezeasguard.sides import SIDES

MODEL = Path(__file__).parent.parent / "data" / "models" / "tiny-1.5"
SHAPES = {"conv_in.bias": (2,), "down_blocks.0.w": (2, 2), "down_blocks.0.z": (1, 3), "mid_block.w": (2, 1)}


@pytest.mark.parametrize(("value", "kept"), [(0.0, 0.0), (123456.0, 123500.0), (-0.000123456, -0.0001235), (2.0, 2.0)])
def test_significant_digits(value: float, kept: float) -> None:
    assert significant(value) == kept


def mask_of(logits: Tensor, granularity: str, signals: dict[str, Tensor] | None = None) -> LearnedMask:
    history = MaskHistory()
    for side, signal in (signals or {}).items():
        history.record(side, signal, 1.0)
        history.record(side, 3 * signal, 1.0)
    return LearnedMask(SHAPES, granularity, logits, -logits, history)


def test_overlap_of_units() -> None:
    a, b, none = (torch.tensor(x, dtype=torch.bool) for x in ([1, 1, 1, 1, 0], [0, 0, 1, 0, 1], [0] * 5))
    assert overlap_of_units(a, b) == 0.25 and overlap_of_units(b, a) == 0.5
    assert overlap_of_units(a, a) == overlap_of_units(none, a) == 1 and overlap_of_units(a, none) == 0


def test_signals_are_summed_by_tensor() -> None:
    row = torch.tensor([1.0, 2.0, 10.0, -30.0, 500.0, 0.0, 7.12345])
    signals = {"illegal": row, "legal": -row.flip(0)}
    learned = mask_of(torch.arange(7.0), "row", signals)
    found = mask_diagnostics(learned, 0.5, mask_of(-torch.arange(7.0), "row"), [learned, mask_of(row, "row")])
    illegal = found["task_signal"]["illegal"]
    assert illegal["by_tensor"] == {
        "conv_in.bias": 6.0, "down_blocks.0.w": -40.0, "down_blocks.0.z": 1000.0, "mid_block.w": 14.25,
    }  # fmt: skip
    assert illegal["max_size"] == 1000 and illegal["median_size"] == pytest.approx(14.2469)
    # round(0.5 * 7) = 4 of 7 rows: 3, 4, 5, 6 here, and 0, 1, 2, 3 of the falling logits
    assert found["overlap_with_initial_logits"] == found["overlap_with_zeroed_signal"] == 0.25
    assert found["overlap_across_seeds"] == [1.0, 0.5]
    assert found["rank_correlation_of_sides_by_unit"] == rank_correlation(row.abs(), row.flip(0).abs())
    by_tensor = {side: torch.tensor(list(found["task_signal"][side]["by_tensor"].values())).abs() for side in SIDES}
    assert found["rank_correlation_of_sides"] == pytest.approx(rank_correlation(*by_tensor.values()))
    assert found["rank_correlation_of_sides"] != found["rank_correlation_of_sides_by_unit"]


def test_inconsistent_signals_are_told_from_consistent_ones() -> None:
    history = MaskHistory()
    for sign in (1.0, -1.0):
        for side in SIDES:
            history.record(side, torch.tensor([1.0, sign, sign, 2.0]), 0.0)
    learned = LearnedMask(SHAPES, "tensor", torch.arange(4.0), torch.zeros(4), history)
    found = mask_diagnostics(learned, 0.5, learned, [])
    assert found["task_signal"]["legal"]["share_consistent"] == 0.5


# --- the protection stage -------------------------------------------------------------------------


def inputs_of(arm: str, data: CaseData, finetuned: Path, **mask: Any) -> Inputs:
    """What the stage gives to an arm of the profile smoke."""
    values = yaml.safe_load(profile_text("smoke"))
    values["mask"] |= {"mask_steps": 1, "batch_size": 2, "mask_batch_size": 2, **mask}
    settings = protect_settings(parse_params(values, Path("params.yaml")), "portraits", Arm.parse(arm))
    inputs = Inputs(settings, MODEL, finetuned, finetuned)
    inputs.__dict__["data"] = data
    return inputs


@pytest.fixture(scope="module")
def data() -> CaseData:
    rows = [{"row": i, "side": side, "part": "mask_learning"} for i, side in enumerate(SIDES)]
    generator = torch.Generator().manual_seed(0)
    dimension = load_unet(MODEL).config["cross_attention_dim"]
    text = torch.randn(2, 77, dimension, generator=generator)
    return CaseData(pd.DataFrame(rows), torch.randn(2, 2, 8, 16, 16, generator=generator), text, text[0])


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetuned")
    tensors = {name: t.detach() for name, t in named_tensors(load_unet(MODEL)).items()}
    for i, side in enumerate(SIDES):
        generator = torch.Generator().manual_seed(i)
        save_file(
            {n: t + 0.01 * torch.randn(t.shape, generator=generator) for n, t in tensors.items()},
            folder / f"{side}.safetensors",
        )
    return folder


@pytest.mark.parametrize("granularity", ["tensor", "row", "element"])
def test_a_learned_mask_is_written_at_its_granularity_and_stays_small(
    granularity: str, data: CaseData, finetuned: Path, tmp_path: Path
) -> None:
    arm = "freezeasguard" if granularity == "tensor" else f"freezeasguard-{granularity}"
    inputs = inputs_of(arm, data, finetuned)
    protect_case(inputs, tmp_path / "arm")
    protected = read_protected(tmp_path / "arm", load_unet(MODEL))
    assert inputs.settings.mask is not None
    learned = freezeasguard.learn(inputs, inputs.settings.mask, inputs.settings.seed)
    expected = Protected("freezeasguard", granularity=granularity, frozen_units=learned.frozen_units(0.3))
    assert protected.granularity == granularity and protected.frozen == expected.frozen
    assert protected.frozen_units.keys() == expected.frozen_units.keys()
    assert all(torch.equal(protected.frozen_units[n], units) for n, units in expected.frozen_units.items())
    assert bool(protected.frozen_units) == (granularity != "tensor")
    found = protected.diagnostics
    assert found["n_frozen"] == round(0.3 * found["n_units"]) and len(found["overlap_across_seeds"]) == 1
    assert len(found["task_signal"]["legal"]["by_tensor"]) == 686
    assert found["path_check"].keys() == set(SIDES)
    assert protected.settings["granularity"] == granularity
    assert (tmp_path / "arm" / "protected.json").stat().st_size < 600_000
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("control", ["one_shot", "zeroed_signal"])
def test_controls_are_written_under_their_own_names(
    control: str, data: CaseData, finetuned: Path, tmp_path: Path
) -> None:
    inputs = inputs_of(control, data, finetuned, granularity="row", user_steps=3)
    protect_case(inputs, tmp_path / "arm")
    protected = read_protected(tmp_path / "arm", load_unet(MODEL))
    assert protected.method == control and protected.granularity == "row"
    assert protected.diagnostics["n_frozen"] == round(0.3 * protected.diagnostics["n_units"])
    assert inputs.settings.mask is not None
    mask = freezeasguard.learn(inputs, inputs.settings.mask, inputs.settings.seed, control)
    assert not mask.history.user_loss
    assert torch.equal(mask.top(0.3), mask.initially_top(0.3)) == (control == "zeroed_signal")
    (agreement,) = protected.diagnostics["overlap_across_seeds"]
    assert agreement < 1 and (agreement > 0.35) == (control == "one_shot")


def test_one_mask_step_within_a_budget_of_weights(data: CaseData, finetuned: Path, tmp_path: Path) -> None:
    inputs = inputs_of("one_shot_parameters", data, finetuned, granularity="tensor", user_steps=3)
    protect_case(inputs, tmp_path / "arm")
    unet = load_unet(MODEL)
    protected = read_protected(tmp_path / "arm", unet)
    assert protected.method == "one_shot_parameters" and protected.settings["by"] == "parameters"
    sizes = {name: p.numel() for name, p in unet.named_parameters()}
    share = sum(sizes[name] for name in protected.frozen) / sum(sizes.values())
    assert share >= 0.3 and len(protected.frozen) < len(sizes)
    by_count = inputs_of("one_shot", data, finetuned, granularity="tensor", user_steps=3)
    protect_case(by_count, tmp_path / "count")
    assert read_protected(tmp_path / "count", unet).frozen != protected.frozen
    with pytest.raises(FreezeAsGuardError, match="leave -row out"):
        protect_case(
            inputs_of("one_shot_parameters-row", data, finetuned, granularity="row", user_steps=3), tmp_path / "row"
        )
