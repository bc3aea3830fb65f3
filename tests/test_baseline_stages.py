"""The rival methods through the one interface: what their stages write, and what a user loads."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from freezeasguard.arms import Arm
from freezeasguard.models.diffusion import encode_text, load_text, load_unet, tokenize
from freezeasguard.models.latents import CaseData
from freezeasguard.models.protected import Protected, read_protected
from freezeasguard.protections.protect import Inputs, protect_case
from freezeasguard.settings.params import parse_params
from freezeasguard.settings.profiles import profile_text
from freezeasguard.settings.resolve import protect_settings

MODEL = Path(__file__).parent.parent / "data" / "models" / "tiny-1.5"
SUBJECTS = {"illegal": "Fito Bakago", "legal": "Nita Rodoga"}


def protected_by(arm: str, data: CaseData, out: Path, **case: object) -> Protected:
    """What the stage writes for this arm of the profile smoke, read back."""
    values = yaml.safe_load(profile_text("smoke"))
    values["cases"]["portraits"] |= {"arms": ["pretrained", "full", arm], **case}
    values["imma"] |= {"steps": 1, "batch_size": 2}
    settings = protect_settings(parse_params(values, Path("params.yaml")), "portraits", Arm.parse(arm))
    inputs = Inputs(settings, MODEL, out / "none", out / "none")
    inputs.__dict__["data"] = data
    protect_case(inputs, out / arm)
    return read_protected(out / arm, load_unet(MODEL))


@pytest.fixture(scope="module")
def data() -> CaseData:
    rows = [
        {"row": i, "side": side, "class": side, "subject": subject, "part": "mask_learning", "caption": subject}
        for i, (side, subject) in enumerate(SUBJECTS.items())
    ]
    tokenizer, encoder = load_text(MODEL)
    text = encode_text(encoder, tokenize(tokenizer, list(SUBJECTS.values()))[0])
    latents = torch.randn(2, 2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    return CaseData(pd.DataFrame(rows), latents, text, text[0])


@pytest.mark.parametrize("arm", ["uce", "uce_b"])
def test_uce_writes_the_edited_projections_alone(tmp_path: Path, data: CaseData, arm: str) -> None:
    protected = protected_by(arm, data, tmp_path, guide="a person")
    assert protected.method == "uce" and not protected.frozen and len(protected.edited) == 32
    assert protected.settings["concepts"] == ["Fito Bakago"]  # the legal subject is not erased
    assert protected.settings["reading"] == ("B" if arm == "uce_b" else "A")
    assert set(protected.diagnostics["relative_change"]) == set(protected.edited)


def test_uce_takes_the_concepts_of_the_case(tmp_path: Path, data: CaseData) -> None:
    assert protected_by("uce", data, tmp_path, concepts=["a beard"]).settings["concepts"] == ["a beard"]


def test_imma_writes_the_attention_projections_alone(tmp_path: Path, data: CaseData) -> None:
    protected = protected_by("imma", data, tmp_path)
    assert protected.method == "imma" and not protected.frozen and len(protected.edited) == 160
    assert all(".attn1." in name or ".attn2." in name for name in protected.edited)
    assert len(protected.diagnostics["inner"]) == len(protected.diagnostics["outer"]) == 1
