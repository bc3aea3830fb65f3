"""The study's workbench: which masks meet, what is taken up again after a kill, and whose data plays whom."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import save_file

from freezeasguard.models.diffusion import stored_tensors
from freezeasguard.models.protected import Protected, mask_sizes, tensor_shapes
from freezeasguard.settings.params import Params, parse_params, profile_text
from freezeasguard.sides import SIDES
from freezeasguard.study import ROLES, Candidate, Workbench, data_side

MODEL = Path(__file__).parent.parent / "data" / "models" / "tiny-1.5"


@pytest.fixture
def params() -> Params:
    values = yaml.safe_load(profile_text("smoke"))
    values["studies"] = {"p": {"case": "portraits", "seed": 3, "random_draws": 2}}
    values |= {"workers": 1}
    values["adapt"] |= {"steps": 1, "batch_size": 2}
    values["relearn"] |= {"steps": 1, "batch_size": 2}
    values["mask"] |= {"mask_steps": 1, "batch_size": 2}
    values["generate"] |= {"steps": 1, "prompts_per_side": 1, "held_out_prompts_per_side": 1}
    return parse_params(values, Path("params.yaml"))


@pytest.fixture
def bench(tmp_path: Path, params: Params) -> Workbench:
    generator = torch.Generator().manual_seed(0)
    parts = ["mask_learning", "adaptation", "held_out"]
    rows = [
        {
            "row": 3 * s + i,
            "side": side,
            "class": side,
            "subject": side,
            "part": part,
            "path": "",
            "caption": f"{side} {i}",
        }
        for s, side in enumerate(SIDES)
        for i, part in enumerate(parts)
    ]
    folder = tmp_path / "latents" / "portraits"
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "index.csv", index=False)
    text = torch.randn(6, 48, 96, generator=generator)
    latents = torch.randn(6, 2, 8, 16, 16, generator=generator)
    save_file({"latents": latents, "text": text, "empty_text": text[0].clone()}, folder / "latents.safetensors")
    return Workbench(params, params.studies["p"], MODEL, tmp_path, tmp_path / "scratch")


def test_the_sides_take_turns() -> None:
    assert [data_side(side, ROLES[0]) for side in SIDES] == ["illegal", "legal"]
    assert [data_side(side, ROLES[1]) for side in SIDES] == ["legal", "illegal"]


def test_blind_masks_are_of_every_kind_and_size(bench: Workbench) -> None:
    found = bench.blind(parameter_share=0.4)
    names = [(c.name, c.protected.granularity) for c in found]
    assert names[:4] == [("random-0", "tensor"), ("random-0", "row"), ("random-0", "element"), ("random-1", "tensor")]
    assert [name for name, _ in names[4:]] == [
        "random-parameters",
        "magnitude",
        "attention",
        "convolutions",
        "time_embedding",
        "zeroed_signal",
    ]
    assert {c.role for c in found} == {None} and len({c.key for c in found}) == len(found)
    shapes = tensor_shapes(stored_tensors(MODEL))
    sizes = {c.key: mask_sizes(c.protected, shapes) for c in found}
    for c in found:
        if c.name != "random-parameters":
            assert sizes[c.key]["n_frozen"] == round(0.3 * sizes[c.key]["n_units"])
    by_parameters = next(c for c in found if c.name == "random-parameters")
    assert sizes[by_parameters.key]["share_of_parameters_frozen"] == pytest.approx(0.4, abs=0.01)


def test_learned_masks_know_their_roles(bench: Workbench) -> None:
    found = {(c.name, c.protected.granularity, c.role): c for c in bench.learned()}
    kinds = [(k, g) for k in ("freezeasguard", "one_shot") for g in ("tensor", "row", "element")]
    assert list(found) == [(*kind, role) for kind in kinds for role in ROLES]
    given, swapped = (found["freezeasguard", "tensor", role].protected.frozen for role in ROLES)
    assert given != swapped


def test_finished_pieces_are_taken_up_again(bench: Workbench) -> None:
    candidates = [Candidate("pretrained", None, Protected("full")), Candidate("full", None, Protected("full"))]
    first = bench.adapt(candidates)
    assert (
        first[candidates[0].key, "illegal"]["fixed_noise_loss"]
        != first[candidates[1].key, "illegal"]["fixed_noise_loss"]
    )
    written = {path: path.stat().st_mtime_ns for path in bench.scratch.glob("used-*.json")}
    assert len(written) == 4 and not list(bench.scratch.glob(".used-*"))
    (gone := next(iter(written))).unlink()
    again = bench.adapt(candidates)
    kept = [path for path in written if path != gone]
    assert all(path.stat().st_mtime_ns == written[path] for path in kept) and gone.is_file()
    assert {key: one["fixed_noise_loss"] for key, one in again.items()} == {
        key: one["fixed_noise_loss"] for key, one in first.items()
    }
