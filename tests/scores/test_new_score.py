"""A score of one's own is a class in a file and a line in the registry: everything else finds it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from freezeasguard.models.latents import CaseData
from freezeasguard.reading import read_json
from freezeasguard.reports.tables import calibration_lines, difference_rows, table_rows
from freezeasguard.scores.reference import reference_case
from freezeasguard.scores.registry import SCORES
from freezeasguard.scores.score import score_case
from freezeasguard.settings.params import Score as ScoreSettings
from freezeasguard.settings.resolve import ReferenceSettings
from freezeasguard.settings.resolve import ScoreSettings as CaseSettings
from reported import smoke
from scored_case import read, write_case

ARMS = ["pretrained", "full", "freezeasguard", "random"]
OWN = """
from freezeasguard.scores.rules import AmountScore

class Brightness(AmountScore):
    name = "brightness"
    label = "Brightness"

    def load(self, settings, scorers):
        return lambda images: {"score": images.mean((1, 2, 3))}

    def weight_files(self, settings, scorers):
        return []
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaseData:
    (tmp_path / "own_score.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_score", raising=False)
    monkeypatch.setitem(SCORES, "brightness", importlib.import_module("own_score").Brightness())
    data = write_case(tmp_path, ARMS)
    block = ScoreSettings(bootstrap_resamples=30, comparison_resamples=60)
    reports, reference = tmp_path / "reports", tmp_path / "reference"
    lines = reports / "calibration/portraits.json"
    settings = ReferenceSettings(seed=1, scores=["brightness"], score=block)
    reference_case(settings, data, tmp_path / "raw", tmp_path, reference, lines)
    score_case(
        CaseSettings(seed=1, scores=["brightness"], score=block, arms=ARMS),
        data,
        images=tmp_path / "images",
        adapted=tmp_path / "adapted",
        reference=reference,
        raw=tmp_path / "raw",
        scorers=tmp_path,
        out=tmp_path / "scores",
        reports=reports / "scores/portraits",
    )
    return data


def brightness(root: Path, arm: str) -> np.ndarray:
    files = pd.read_csv(root / "images" / arm / "index.csv")["file"]
    return np.array([read(root / "images" / arm / file).mean() for file in files])


def test_it_is_computed_summarised_and_compared(tmp_path: Path, data: CaseData) -> None:
    table = pd.read_csv(tmp_path / "scores/freezeasguard.csv")
    np.testing.assert_allclose(table["brightness"], brightness(tmp_path, "freezeasguard"), atol=1e-6)
    legal = (table["side"] == "legal").to_numpy()
    means = {arm: brightness(tmp_path, arm)[legal].mean() for arm in ARMS}
    scores = tmp_path / "reports/scores/portraits"
    found = read_json(scores / "freezeasguard.json", "")["legal"]
    assert found["all"]["brightness"]["value"] == pytest.approx(means["freezeasguard"], abs=1e-6)
    assert found["all"]["brightness"]["low"] < means["freezeasguard"] < found["all"]["brightness"]["high"]
    assert (found["all"]["brightness"]["n"], found["held_out"]["brightness"]["n"]) == (16, 4)
    assert found["loss"]["kept"] == pytest.approx(2)  # losses 0.20, 0.19, 0.18
    pairs = read_json(scores / "differences.json", "")["brightness"]["legal"]
    assert pairs.keys() == {"freezeasguard - full", "random - full", "freezeasguard - random"}
    expected = means["freezeasguard"] - means["random"]
    assert pairs["freezeasguard - random"]["interval"]["value"] == pytest.approx(expected, abs=1e-6)


def test_the_tables_show_it(tmp_path: Path, data: CaseData) -> None:
    params, reports = smoke(ARMS, ["brightness"]), tmp_path / "reports"
    header, rows = table_rows(params, "portraits", reports)
    assert header == ["Arm", "Side", "Brightness ↑", "Loss kept"] and len(rows) == 2 * len(ARMS)
    assert {row[0] for row in difference_rows(params, "portraits", reports)[1]} == {"Brightness"}
    (line,) = calibration_lines(params, "portraits", reports)
    rows_of = data.index[(data.index["side"] == "illegal") & (data.index["part"] != "mask_learning")]
    real = np.mean([read(tmp_path / "raw" / path).mean() for path in rows_of["path"]])
    assert line.startswith(f"Brightness on real images: illegal {real:.3f} (n = 8); legal ")
    assert "of telling illegal from legal" in line


def test_reading_what_scores_are_called_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "pandas", "scipy", "transformers")
    code = f"import sys, freezeasguard.scores.registry; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
