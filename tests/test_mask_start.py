"""METHOD, reading 9: what a mask is learned on may be the published model, or one with its concepts erased."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from freezeasguard.arms import Arm
from freezeasguard.models.diffusion import load_unet
from freezeasguard.models.latents import CaseData
from freezeasguard.models.protected import read_protected
from freezeasguard.protections import freezeasguard
from freezeasguard.protections.protect import Inputs, protect_case
from freezeasguard.protections.uce import erase
from freezeasguard.settings.params import parse_params
from freezeasguard.settings.profiles import profile_text
from freezeasguard.settings.resolve import ProtectSettings, protect_settings
from freezeasguard.sides import SIDES

MODEL = Path(__file__).parent.parent / "data" / "models" / "tiny-1.5"


def settings_of(**mask: Any) -> ProtectSettings:
    values = yaml.safe_load(profile_text("smoke"))
    of_mask = {"mask_steps": 1, "user_lr": 1e-4, "batch_size": 2, "mask_batch_size": 1, "diagnostic_seeds": 0, **mask}
    values["mask"] |= of_mask
    return protect_settings(parse_params(values, Path("params.yaml")), "portraits", Arm.parse("freezeasguard"))


def test_only_a_mask_from_an_erased_model_reads_the_block_uce() -> None:
    assert settings_of().uce is None and settings_of().guide == " "
    erased = settings_of(start="uce")
    assert erased.uce is not None and erased.mask is not None and erased.mask.start == "uce"


def test_a_mask_from_an_erased_model_is_learned_from_it_and_ships_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"row": i, "side": side, "class": side, "subject": f"Fito {side}", "part": "mask_learning", "caption": side}
        for i, side in enumerate(SIDES)
    ]
    draw = torch.Generator().manual_seed(0)
    text = torch.randn(2, 48, 96, generator=draw)
    data = CaseData(pd.DataFrame(rows), torch.randn(2, 2, 8, 16, 16, generator=draw), text, text[0])
    finetuned = {(side,): {} for side in SIDES}  # theta_ft is the published model: delta holds the edits alone
    monkeypatch.setattr(freezeasguard, "load_finetuned", lambda *_: finetuned)
    deltas: list[dict[str, bool]] = []
    learner = freezeasguard.MaskLearner

    def spy(unet: Any, *rest: Any) -> Any:
        deltas.append({n: not torch.equal(p, published[n]) for n, p in unet.named_parameters()})
        return learner(unet, *rest)

    monkeypatch.setattr(freezeasguard, "MaskLearner", spy)
    published = {n: p.detach().clone() for n, p in load_unet(MODEL).named_parameters()}
    inputs = Inputs(settings_of(start="uce"), MODEL, tmp_path, tmp_path)
    vars(inputs)["data"] = data
    protect_case(inputs, tmp_path / "protected")
    protected, expected = read_protected(tmp_path / "protected", load_unet(MODEL)), erase(inputs, "A").edited
    assert protected.edited.keys() == expected.keys() and len(expected) == 32
    assert all(torch.equal(protected.edited[name], tensor) for name, tensor in expected.items())
    assert {name for name, differs in deltas[0].items() if differs} == set(expected)
    assert protected.method == "freezeasguard" and len(protected.frozen) == 206
