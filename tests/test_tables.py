"""Golden table: fixed scores in, byte-equal table out; a missing cell is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_json
from freezeasguard.reports.tables import paper_value, paper_values, write_tables
from freezeasguard.scores.scoring import compared_arms
from freezeasguard.settings.params import Params, parse_params, profile_text

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def params() -> Params:
    values = yaml.safe_load(profile_text("smoke"))
    values["cases"]["portraits"] |= {"baselines": ["uce", "imma"], "sweep": [10]}
    return parse_params(values, Path("params.yaml"))


@pytest.fixture
def reports(tmp_path: Path, params: Params) -> Path:
    arms = params.arms("portraits")
    for number, arm in enumerate(arms):
        sides = {}
        for offset, side in enumerate(("illegal", "legal")):
            value = 0.4 + 0.1 * number + 0.01 * offset
            score = {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 60, "n_missing": number}
            sides[side] = {
                "loss": {"fixed_noise": 0.1, "kept": 1 - 0.1 * number},
                "all": {
                    "recogniser": score,
                    "fd_efficientnet_lite0": {**score, "value": 100 * value, "n_missing": 0},
                    "clip_tiny": {**score, "value": 50 * value, "n_missing": 0},
                },
            }
        write_json(tmp_path / f"scores/portraits/{arm}.json", sides)
    found = {"interval": {"value": 0.1, "low": -0.02, "high": 0.22}, "p": 0.04, "p_holm": 0.08}
    pairs = {f"{a} - {b}": found for a, b in compared_arms(arms)}
    differences = {name: {"illegal": pairs, "legal": pairs} for name in ("recogniser", "clip_tiny")}
    write_json(tmp_path / "scores/portraits/differences.json", differences)
    line = {"real_vs_real": 0.05, "real_vs_other": 0.95, "n": 300, "n_missing": 1}
    lines = {"recogniser": {"illegal": line, "legal": line, "auc": 0.999}}
    write_json(tmp_path / "calibration/portraits.json", lines)
    return tmp_path


@pytest.mark.parametrize("name", ["table2.md", "table2.csv", "table2.tex", "table2-differences.md"])
def test_table_2_is_byte_equal_to_the_golden_one(params: Params, reports: Path, name: str) -> None:
    write_tables(params, reports)
    assert (reports / "tables" / name).read_bytes() == (GOLDEN / name).read_bytes()


def test_a_missing_cell_is_an_error(params: Params, reports: Path) -> None:
    (reports / "scores/portraits/random.json").unlink()
    with pytest.raises(FreezeAsGuardError, match=r"random.json is missing; run `dvc repro score@portraits`"):
        write_tables(params, reports)
    assert not (reports / "tables").exists()


def test_paper_values_stand_where_the_paper_prints_them() -> None:
    assert len(paper_values()) == 324
    assert paper_value(2, "freezeasguard", 0.3, "illegal", "fn_l") == "0.482"
    assert paper_value(2, "random-10", 0.1, "legal", "fn_l") == "0.431"
    assert paper_value(2, "pretrained", 0.0, "legal", "fid") == "164.8"
    assert paper_value(2, "freezeasguard", 0.35, "illegal", "fn_l") == ""


def test_the_papers_uce_is_reading_a() -> None:
    assert paper_value(2, "uce", 0.0, "illegal", "fn_l") == "0.445"
    assert paper_value(2, "uce-b", 0.0, "illegal", "fn_l") == ""
