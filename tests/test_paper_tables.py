"""Tables 1, 5, 6, 7, 8 as the paper prints them: each number from its own case, arm and side, the paper's beside it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_json
from freezeasguard.reports.paper_tables import cases_of, write_paper_tables
from freezeasguard.settings.params import Params
from reported import cost, smoke, value, write_cells

SHARED = ["pretrained", "full", "uce", "imma", "freezeasguard"]


def world(root: Path, cases: dict[str, dict[str, Any]], **changes: Any) -> Params:
    """Several made-up cases of one domain; the scores of the i-th are higher by i."""
    params = smoke(SHARED, **changes)
    base = params.cases["portraits"]
    made = {name: base.model_copy(update=own) for name, own in cases.items()}
    for i, (name, case) in enumerate(made.items()):
        one = params.model_copy(update={"cases": {name: case}})
        one.__dict__.pop("cells", None), one.__dict__.pop("protected", None)
        write_cells(one, root)
        for path in (root / "reports/scores" / name).glob("*.json"):
            scores = json.loads(path.read_text())
            for parts in scores.values():
                for score in parts["all"].values():
                    score |= {key: score[key] + i for key in ("value", "low", "high")}
            write_json(path, scores)
    return params.model_copy(update={"cases": made})


def rendered(params: Params, root: Path, table: int) -> list[dict[str, str]]:
    names = [path.name for path in write_paper_tables(params, root / "reports", root / "data")]
    assert f"table{table}.md" in names
    with (root / f"reports/tables/table{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_table_5_takes_each_count_from_its_case_and_the_ten_from_table_2(tmp_path: Path) -> None:
    params = world(
        tmp_path,
        {
            "ten": {"table": 2, "illegal": 10, "arms": [*SHARED, "random"]},
            "five": {"table": 5, "illegal": 5},
            "two": {"table": 5, "illegal": 2},
            "other": {"table": None, "illegal": 3},
        },
    )
    assert cases_of(params, 5) == {"2": "two", "5": "five", "10": "ten"}
    rows = {row["Method"]: row for row in rendered(params, tmp_path, 5)}
    assert list(rows) == ["Full FT", "UCE", "IMMA", "FG-30%"]
    printed = {
        "2 classes": ("0.467", "0.426", 2),
        "5 classes": ("0.474", "0.458", 1),
        "10 classes": ("0.482", "0.449", 0),
    }
    for column, (illegal, legal, offset) in printed.items():
        for side, paper in (("illegal", illegal), ("legal", legal)):
            own = value(SHARED.index("freezeasguard"), side) + offset
            assert rows["FG-30%"][f"{column}, {side}"].startswith(f"{own:.3f} [")
            assert rows["FG-30%"][f"paper: {column}, {side}"] == paper
    text = (tmp_path / "reports/tables/table5.md").read_text()
    assert "own tables alone: R-30%" in text and "Cases: two, five, ten" in text


def test_table_6_prints_its_own_numbers_for_one_artist_and_table_7_knows_models(tmp_path: Path) -> None:
    arms = [*SHARED, "freezeasguard-70"]
    params = world(
        tmp_path,
        {
            "art": {"table": 3, "illegal": ["a"], "arms": arms},
            "art2": {"table": 6, "illegal": ["a", "b"], "arms": arms},
            "faces": {"table": 2, "model": "tiny-1.5"},
            "faces14": {"table": 7, "model": "tiny-1.4"},
        },
        scores=["style_efficientnet_lite0"],
    )
    six = {row["Method"]: row for row in rendered(params, tmp_path, 6)}
    assert six["Full FT"]["paper: 1 class, illegal"] == "0.348"  # 0.347 in Table 3
    assert six["FG-70%"]["paper: 2 classes, legal"] == "0.473" and six["FG-30%"]["paper: 1 class, illegal"] == "-"
    (tmp_path / "reports/scores/faces14/imma.json").unlink()
    with pytest.raises(FreezeAsGuardError, match=r"imma.json is missing; run `dvc repro score@faces14`"):
        write_paper_tables(params, tmp_path / "reports", tmp_path / "data")


def test_table_7_has_a_column_a_model(tmp_path: Path) -> None:
    params = world(
        tmp_path,
        {
            "faces": {"table": 2, "model": "tiny-1.5", "illegal": 10},
            "v14": {"table": 7, "model": "tiny-1.4", "illegal": 10},
        },
    )
    row = {row["Method"]: row for row in rendered(params, tmp_path, 7)}["IMMA"]
    assert (row["paper: SD 1.4, illegal"], row["paper: SD 1.5, illegal"]) == ("0.451", "0.467")
    assert row["tiny-1.4, legal"].startswith(f"{value(3, 'legal') + 1:.3f}")
    assert row["tiny-1.5, legal"].startswith(f"{value(3, 'legal'):.3f}")


def test_table_1_shows_the_captioned_side_by_component(tmp_path: Path) -> None:
    arms = ["pretrained", "full", "freeze_attention", "freeze_convolutions", "freeze_time_embedding"]
    arms += ["random-50", "random-50-draw2"]
    params = world(tmp_path, {"pokemon": {"table": 1, "arms": arms}}, scores=["fd_efficientnet_lite0", "clip_tiny"])
    rows = {row["Frozen"]: row for row in rendered(params, tmp_path, 1)}
    assert [row["paper: CLIP"] for row in rows.values()] == ["31.93", "31.60", "31.54", "31.46", "32.25", "32.62"]
    assert rows["R-50%, draw 2"]["paper: FID"] == "216.12"
    assert rows["Full FT"]["CLIP (tiny) ↑"].startswith(f"{value(1, 'legal', 1):.2f}")  # not the illegal side's
    assert "stands in the place of TOPIQ" in (tmp_path / "reports/tables/table1.md").read_text()


def test_table_8_reads_the_users_costs_and_never_the_papers(tmp_path: Path) -> None:
    params = world(tmp_path, {"faces": {"table": 2, "arms": [*SHARED, "freezeasguard-80", "freezeasguard-7"]}})
    rows = {row["rho"]: row for row in rendered(params, tmp_path, 8)}
    assert list(rows) == ["0%", "7%", "30%", "80%"]
    assert rows["7%"]["paper: Step (s)"] == "-"
    own = rows["80%"]
    mean = (cost(0.8, 0)["median_step_s"] + cost(0.8, 1)["median_step_s"]) / 2
    assert float(own["Step (s) ↓"]) == pytest.approx(mean, abs=1e-3)
    assert own["Step: ratio to no freezing"] == "0.80 [0.80, 0.80]" and own["paper: Step: ratio"] == "0.78"
    assert own["Memory: ratio to no freezing"].startswith("0.60") and own["paper: Memory (GB)"] == "9.49"
    assert float(own["Memory (GiB) ↓"]) == pytest.approx(9 * 0.6)
    path = tmp_path / "data/costs/adapt/faces-freezeasguard-80.json"
    users = json.loads(path.read_text())
    write_json(path, {user: {**one, "device": "cpu", "peak_bytes": None} for user, one in users.items()})
    on_cpu = {row["rho"]: row for row in rendered(params, tmp_path, 8)}["80%"]
    assert on_cpu["Memory (GiB) ↓"] == on_cpu["Memory: ratio to no freezing"] == "-"
    path.unlink()
    with pytest.raises(FreezeAsGuardError, match=r"is missing; run `dvc repro -f adapt@faces-freezeasguard-80`"):
        write_paper_tables(params, tmp_path / "reports", tmp_path / "data")


def test_a_profile_without_such_cases_or_with_swapped_roles_has_none(tmp_path: Path) -> None:
    params = world(tmp_path, {"mine": {"table": None}})
    assert write_paper_tables(params, tmp_path / "reports", tmp_path / "data") == []
    swapped = world(tmp_path, {"two": {"table": 5}}, roles="swapped")
    assert write_paper_tables(swapped, tmp_path / "reports", tmp_path / "data") == []
