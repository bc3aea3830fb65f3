"""Golden table: fixed scores in, byte-equal table out; a missing cell is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from freezeasguard.config import Params, parse_params, profile_text
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_json
from freezeasguard.tables import paper_value, paper_values, write_tables

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def params() -> Params:
    return parse_params(yaml.safe_load(profile_text("tiny")), Path("params.yaml"))


@pytest.fixture
def reports(tmp_path: Path, params: Params) -> Path:
    for number, arm in enumerate(params.arms("portraits")):
        sides = {}
        for offset, side in enumerate(("illegal", "legal")):
            value = 0.4 + 0.1 * number + 0.01 * offset
            score = {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 60, "n_missing": number}
            sides[side] = {
                "all": {
                    "recogniser": score,
                    "fd_efficientnet_lite0": {**score, "value": 100 * value, "n_missing": 0},
                    "clip_tiny": {**score, "value": 50 * value, "n_missing": 0},
                }
            }
        write_json(tmp_path / f"scores/portraits/{arm}.json", sides)
    line = {"real_vs_real": 0.05, "real_vs_other": 0.95, "auc": 0.999, "n": 300, "n_missing": 1}
    write_json(tmp_path / "scores/portraits/real.json", {"recogniser": {"illegal": line, "legal": line}})
    return tmp_path


@pytest.mark.parametrize("suffix", ["md", "csv", "tex"])
def test_table_2_is_byte_equal_to_the_golden_one(params: Params, reports: Path, suffix: str) -> None:
    write_tables(params, reports)
    assert (reports / f"tables/table2.{suffix}").read_bytes() == (GOLDEN / f"table2.{suffix}").read_bytes()


def test_a_missing_cell_is_an_error(params: Params, reports: Path) -> None:
    (reports / "scores/portraits/random.json").unlink()
    with pytest.raises(FreezeAsGuardError, match=r"random.json is missing; run `dvc repro score@portraits-random`"):
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
