"""The rival methods through the one interface: what their stages write, and what a user loads."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from freezeasguard.models.diffusion import encode_text, load_text, load_unet, tokenize
from freezeasguard.models.latents import CaseData
from freezeasguard.models.protected import read_protected
from freezeasguard.protections.rivals import protect_by_imma, protect_by_uce
from freezeasguard.settings.params import Params, parse_params, profile_text

MODEL = Path(__file__).parent.parent / "data" / "models" / "tiny-1.5"
SUBJECTS = {"illegal": "Fito Bakago", "legal": "Nita Rodoga"}


def params(**case: object) -> Params:
    values = yaml.safe_load(profile_text("smoke"))
    values["cases"]["portraits"] |= {"baselines": ["uce", "uce-b", "imma"], **case}
    values["imma"] |= {"steps": 1, "batch_size": 2}
    return parse_params(values, Path("params.yaml"))


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


@pytest.mark.parametrize("arm", ["uce", "uce-b"])
def test_uce_writes_the_edited_projections_alone(tmp_path: Path, data: CaseData, arm: str) -> None:
    protect_by_uce(params(guide="a person"), "portraits", arm, MODEL, data, tmp_path / arm)
    protected = read_protected(tmp_path / arm, load_unet(MODEL))
    assert protected.method == "uce" and not protected.frozen and len(protected.edited) == 32
    assert protected.settings["concepts"] == ["Fito Bakago"]  # the legal subject is not erased
    assert protected.settings["reading"] == ("B" if arm == "uce-b" else "A")
    assert set(protected.diagnostics["relative_change"]) == set(protected.edited)


def test_uce_takes_the_concepts_of_the_case(tmp_path: Path, data: CaseData) -> None:
    protect_by_uce(params(concepts=["a beard"]), "portraits", "uce", MODEL, data, tmp_path / "uce")
    assert read_protected(tmp_path / "uce", load_unet(MODEL)).settings["concepts"] == ["a beard"]


def test_imma_writes_the_attention_projections_alone(tmp_path: Path, data: CaseData) -> None:
    protect_by_imma(params(), MODEL, data, tmp_path / "imma")
    protected = read_protected(tmp_path / "imma", load_unet(MODEL))
    assert protected.method == "imma" and not protected.frozen and len(protected.edited) == 160
    assert all(".attn1." in name or ".attn2." in name for name in protected.edited)
    assert len(protected.diagnostics["inner"]) == len(protected.diagnostics["outer"]) == 1
