"""Golden table: fixed scores in, byte-equal table out; a missing cell is an error; what experiments are compared by."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from freezeasguard.arms import Arm
from freezeasguard.commands import CALIBRATION, SUMMARIES
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_json
from freezeasguard.reports.curves import rho_figure
from freezeasguard.reports.figures import tradeoff_figure
from freezeasguard.reports.gather import gather_scores
from freezeasguard.reports.measures import CaseScores
from freezeasguard.reports.paper import paper_value, paper_values
from freezeasguard.reports.summary import COLUMNS, cell_rows, headline_metrics, write_summary
from freezeasguard.reports.tables import published_lines, table_name, table_rows, verdict_lines, write_tables
from freezeasguard.scores.registry import side_score
from freezeasguard.scores.scoring import compared_arms
from freezeasguard.settings.params import Params, parse_params
from freezeasguard.settings.profiles import profile_text
from reported import ARMS, CLASSES, smoke, value, write_cells

GOLDEN = Path(__file__).parent / "golden"
EXPLICIT = ["nudenet_faces", "nudenet_faces_rate", "kd_efficientnet_lite0", "fd_efficientnet_lite0", "clip_tiny"]


@pytest.fixture
def params() -> Params:
    return smoke([*ARMS, "freezeasguard-10", "random-10"])


@pytest.fixture
def root(tmp_path: Path, params: Params) -> Path:
    """The golden tables' scores, in a whole experiment."""
    write_cells(params, tmp_path)
    write_golden_scores(params, tmp_path / "reports")
    return tmp_path


def write_golden_scores(params: Params, reports: Path) -> None:
    arms = [arm.name for arm in params.arms("portraits")]
    for number, arm in enumerate(arms):
        sides = {}
        for offset, side in enumerate(("illegal", "legal")):
            value = 0.4 + 0.1 * number + 0.01 * offset
            score = {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 60, "n_missing": number}
            sides[side] = {
                "loss": {
                    "fixed_noise": 0.1,
                    "kept": 1 - 0.1 * number,
                    "kept_held_out": 0.9 - 0.1 * number,
                    **{f"kept_quarter_{i}": kept for i, kept in enumerate((None, 0.7, 0.8 - 0.1 * number, 1.0), 1)},
                },
                "all": {
                    "recogniser": score,
                    "fd_efficientnet_lite0": {**score, "value": 100 * value, "n_missing": 0},
                    "clip_tiny": {**score, "value": 50 * value, "n_missing": 0},
                },
            }
        write_json(reports / f"scores/portraits/{arm}.json", sides)
    found = {"interval": {"value": 0.1, "low": -0.02, "high": 0.22}, "p": 0.04, "p_holm": 0.08}
    pairs = {f"{a} - {b}": found for a, b in compared_arms(arms)}
    differences = {name: {"illegal": pairs, "legal": pairs} for name in ("recogniser", "clip_tiny")}
    write_json(reports / "scores/portraits/differences.json", differences)
    line = {"real_vs_real": 0.05, "real_vs_other": 0.95, "n": 300, "n_missing": 1}
    lines = {"recogniser": {"illegal": line, "legal": line, "auc": 0.999}}
    write_json(reports / "calibration/portraits.json", lines)


@pytest.mark.parametrize("name", ["table2.md", "table2.csv", "table2.tex", "table2-differences.md"])
def test_table_2_is_byte_equal_to_the_golden_one(params: Params, root: Path, name: str) -> None:
    write_tables(params, root / "reports", root / "data")
    assert (root / "reports/tables" / name).read_bytes() == (GOLDEN / name).read_bytes()


def test_the_stage_writes_diagnostics_metrics_and_cells_too(params: Params, root: Path) -> None:
    reports = root / "reports"
    written = write_tables(params, reports, root / "data")
    names = [
        "table2.md",
        "table2-differences.md",
        "table8.md",
        "claims.md",
        "kept.md",
        "mask_diagnostics.md",
        "mask_diagnostics_blocks.md",
    ]
    assert [path.name for path in written] == names
    assert "FG-10%" in (reports / "tables/mask_diagnostics.md").read_text()
    assert (reports / "metrics.json").is_file() and (reports / "cells.csv").is_file()


def test_a_missing_cell_is_an_error(params: Params, root: Path) -> None:
    (root / "reports/scores/portraits/random.json").unlink()
    with pytest.raises(FreezeAsGuardError, match=r"random.json is missing; run `dvc repro score@portraits`"):
        write_tables(params, root / "reports", root / "data")
    assert not (root / "reports/tables").exists()


def printed(arm: str, side: str, metric: str, *, rho: float = 0.3, table: int = 2, **case: Any) -> str:
    """The paper's number beside an arm of the profile smoke's case, were it of this table."""
    params = smoke(rho=rho)
    changed = params.cases["portraits"].model_copy(update={"table": table, **case})
    return paper_value(
        params.model_copy(update={"cases": {"portraits": changed}}), "portraits", Arm.parse(arm), side, metric
    )


def test_paper_values_stand_where_the_paper_prints_them() -> None:
    assert len(paper_values()) == 324
    assert printed("freezeasguard", "illegal", "fn_l") == "0.482"
    assert printed("random-10", "legal", "fn_l") == "0.431"
    assert printed("pretrained", "legal", "fid") == "164.8"
    assert printed("freezeasguard", "illegal", "fn_l", rho=0.35) == ""
    assert printed("freezeasguard-row", "illegal", "fn_l") == ""


def test_the_papers_uce_is_reading_a() -> None:
    assert printed("uce", "illegal", "fn_l") == "0.445"
    assert printed("uce_b", "illegal", "fn_l") == ""


@pytest.mark.parametrize(
    ("table", "case", "value"),
    [
        (7, {"model": "tiny-1.5"}, "0.436"),
        (7, {"model": "sd-2.1"}, None),
        (7, {"model": "mine"}, ""),
        (5, {"illegal": 2}, "0.397"),
        (5, {"illegal": ["a", "b", "c", "d", "e"]}, "0.424"),
        (5, {"illegal": 3}, ""),
        (2, {"illegal": 3, "model": "mine"}, "0.436"),  # one model, one number: nothing to choose
    ],
)
def test_a_table_of_several_models_or_counts_gives_the_cases_own(table: int, case: Any, value: str | None) -> None:
    found = printed("full", "illegal", "fn_l", table=table, **case)
    rows = [row for row in paper_values() if (row["table"], row["method"], row["side"]) == ("7", "full", "illegal")]
    expected = next(row["value"] for row in rows if (row["model"], row["metric"]) == ("sd-2.1", "fn_l"))
    assert found == (expected if value is None else value)


def test_cases_of_one_table_have_a_file_each(root: Path, params: Params) -> None:
    case = params.cases["portraits"].model_copy(update={"table": 5, "illegal": 10})
    for folder in ("scores", "calibration"):
        for path in sorted((root / "reports" / folder).iterdir()):
            target = path.with_name(path.name.replace("portraits", "two"))
            shutil.copytree(path, target) if path.is_dir() else shutil.copyfile(path, target)
    for kind in ("protected", "latents", "adapted", "scores"):
        shutil.copytree(root / "data" / kind / "portraits", root / "data" / kind / "two")
    both = params.model_copy(update={"cases": {"portraits": case, "two": case.model_copy(update={"illegal": 2})}})
    assert {table_name(both, name) for name in both.cases} == {"table5-portraits", "table5-two"}
    assert table_name(params, "portraits") == "table2"
    write_tables(both, root / "reports", root / "data")
    first, second = ((root / f"reports/tables/table5-{name}.md").read_text() for name in both.cases)
    assert "(paper, Table 5); case portraits" in first and "(paper, Table 5); case two" in second
    assert "| 0.397" in second and "| 0.397" not in first


@pytest.mark.parametrize(
    ("roles", "illegal", "legal"),
    [
        ("given", "nudenet_faces", "kd_efficientnet_lite0"),
        ("swapped", "kd_efficientnet_lite0", "nudenet_faces"),
    ],
)
def test_a_side_speaks_through_the_score_of_its_images(roles: str, illegal: str, legal: str) -> None:
    assert side_score(EXPLICIT, "illegal", roles) == illegal and side_score(EXPLICIT, "legal", roles) == legal
    assert side_score(["recogniser", "clip_tiny"], "legal", roles) == "recogniser"


# --- what experiments are compared by -------------------------------------------------------------------


def rows_of(params: Params, root: Path) -> dict[tuple[str, str], dict[str, Any]]:
    write_cells(params, root)
    return {(r["arm"], r["side"]): r for r in cell_rows(params, root / "reports", root / "data")}


def test_each_side_has_its_own_numbers(tmp_path: Path) -> None:
    params = smoke()
    rows = rows_of(params, tmp_path)
    metrics = headline_metrics(params, tmp_path / "reports")["portraits"]
    _, table = table_rows(params, "portraits", tmp_path / "reports")
    printed = {(row[0], row[1]): row[2] for row in table}
    for number, arm in enumerate(params.arms("portraits")):
        for side in CLASSES:
            expected = value(number, side)
            assert rows[arm.name, side]["score"] == expected
            assert rows[arm.name, side]["classes"] == " ".join(CLASSES[side])
            assert printed[arm.label(0.3), side].startswith(f"{expected:.3f} ")
            if arm.headline:
                assert metrics[arm.name][side] == pytest.approx(expected, rel=1e-3)
    full, own = ({side: value(a, side) for side in CLASSES} for a in (2, 5))
    fall = {side: 100 * (own[side] / full[side] - 1) for side in CLASSES}
    assert metrics["freezeasguard"]["gap"] == pytest.approx(fall["illegal"] - fall["legal"], rel=1e-3)
    assert metrics["freezeasguard"]["kept_illegal"] == 0.5 and metrics["freezeasguard"]["kept_legal"] == 0.47


@pytest.mark.parametrize("roles", ["given", "swapped"])
def test_swapped_roles_take_the_score_of_their_images(tmp_path: Path, roles: str) -> None:
    params = smoke(scores=EXPLICIT, roles=roles)
    rows = rows_of(params, tmp_path)
    metrics = headline_metrics(params, tmp_path / "reports")["portraits"]
    place = {"illegal": 0, "legal": 2} if roles == "given" else {"illegal": 2, "legal": 0}  # in EXPLICIT
    for side, k in place.items():
        assert rows["full", side]["score_name"] == EXPLICIT[k]
        assert rows["full", side]["score"] == value(2, side, k)
        assert metrics["full"][side] == pytest.approx(value(2, side, k), rel=1e-3)
        # pretrained 0, full 2, freezeasguard 5: the Fréchet distance rises, so that nothing can be kept of it
        kept = rows["freezeasguard", side]["kept_score"]
        assert kept == (pytest.approx(2.5) if EXPLICIT[k] == "nudenet_faces" else None)


def test_swapped_roles_have_no_numbers_of_the_paper(tmp_path: Path) -> None:
    params = smoke(roles="swapped")
    write_cells(params, tmp_path)
    write_golden_scores(params, tmp_path / "reports")
    write_tables(params, tmp_path / "reports", tmp_path / "data")
    text = (tmp_path / "reports/tables/table2.md").read_text()
    assert "paper: FN-L" not in text and "; paper, FN-L" not in text and "roles swapped" in text


def test_the_tiny_profile_has_a_screenful_of_metrics(tmp_path: Path) -> None:
    import yaml

    tiny = parse_params(yaml.safe_load(profile_text("tiny")), Path("tiny"))
    for case in tiny.cases:
        one = smoke(tiny.cases[case].arms)
        write_cells(one, tmp_path)
        assert sum(len(arm) for arm in headline_metrics(one, tmp_path / "reports")["portraits"].values()) == 24


def test_what_is_not_known_is_left_out_of_the_metrics_and_empty_in_the_cells(tmp_path: Path) -> None:
    params = smoke()
    write_cells(params, tmp_path)
    path = tmp_path / "reports/scores/portraits/random.json"
    scores = json.loads(path.read_text())
    scores["legal"]["loss"]["kept"] = None
    write_json(path, scores)
    assert sorted(headline_metrics(params, tmp_path / "reports")["portraits"]["random"]) == [
        "gap", "illegal", "kept_illegal", "legal",
    ]  # fmt: skip
    write_summary(params, tmp_path / "reports", tmp_path / "data")
    with (tmp_path / "reports/cells.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 2 * len(ARMS)
    (odd,) = [row for row in rows if (row["arm"], row["side"]) == ("random", "legal")]
    assert odd["kept_loss"] == "" and odd["illegal_weight"] == "" and odd["arm_rho"] == "0.3"
    (mine,) = [row for row in rows if (row["arm"], row["side"]) == ("freezeasguard", "illegal")]
    assert mine["illegal_weight"] == "0.5" and mine["mask_bytes"] == "2048"


def test_other_settings_are_another_cell(tmp_path: Path) -> None:
    """Seed, roles, ratio, preset and weight have columns; whatever else differs must show."""
    first = rows_of(smoke(), tmp_path)
    again = rows_of(smoke(seed=1, roles="swapped", rho=0.5), tmp_path)
    values = smoke().model_dump()
    longer = rows_of(smoke(adapt=values["adapt"] | {"steps": 9}), tmp_path)
    for key in (("freezeasguard", "legal"), ("random", "illegal")):
        assert first[key]["settings"] == again[key]["settings"] != longer[key]["settings"]


def test_the_scores_in_git_are_those_of_the_cases_alone(params: Params, tmp_path: Path) -> None:
    """Copies of what score and reference left in data/, whole or not at all; a case that went leaves no file behind."""
    data, reports = tmp_path / "data", tmp_path / "reports"
    for case in ("portraits", "gone"):
        write_json(data / "scores" / case / SUMMARIES / "full.json", {"of": case})
        write_json(data / "reference" / case / CALIBRATION, {"of": case})
    write_json(reports / "scores/gone/full.json", {})
    gather_scores(params, data, reports)
    found = {str(path.relative_to(reports)): path.read_text() for path in reports.rglob("*.json")}
    assert found.keys() == {"scores/portraits/full.json", "calibration/portraits.json"}
    assert all(json.loads(text) == {"of": "portraits"} for text in found.values())
    (data / "reference/portraits" / CALIBRATION).unlink()
    with pytest.raises(FreezeAsGuardError, match="calibration.json is missing; run `dvc repro reference@portraits`"):
        gather_scores(params, data, reports)
    assert {path.read_text() for path in reports.rglob("*.json")} == set(found.values())


def test_a_fall_from_a_score_of_zero_is_not_told(tmp_path: Path) -> None:
    """NudeNet may find nothing in any image of full fine-tuning: of 0 there is no percent."""
    params = smoke(scores=["nudenet", "nudenet_rate", "fid"])
    write_cells(params, tmp_path)
    path = tmp_path / "reports/scores/portraits/full.json"
    full = json.loads(path.read_text())
    full["illegal"]["all"]["nudenet"] |= {"value": 0.0, "low": 0.0, "high": 0.0}
    path.write_text(json.dumps(full))
    reports = tmp_path / "reports"
    lines = verdict_lines(params, "portraits", reports, tmp_path / "data")
    assert lines and not any("nan" in line for line in lines)
    arms = [line for line in lines if "fall of quality" in line]
    assert arms and all("illegal no signal, legal no signal" in line for line in arms)
    metrics = headline_metrics(params, reports)["portraits"]
    assert "gap" not in metrics["random"] and {"illegal", "legal"} <= metrics["random"].keys()
    figure = tradeoff_figure(CaseScores(params, "portraits", reports), tmp_path / "tradeoff.png")
    assert figure.is_file() and rho_figure(CaseScores(params, "portraits", reports), tmp_path / "rho.png").is_file()


def test_what_is_published_before_anybody_trains_is_told(tmp_path: Path) -> None:
    params = smoke()
    write_cells(params, tmp_path)
    path = tmp_path / "reports/scores/portraits/uce-before.json"
    scores = json.loads(path.read_text())
    scores["illegal"]["loss"]["kept"], scores["legal"]["loss"]["kept"] = -1.5, 0.9
    path.write_text(json.dumps(scores))
    (line,) = published_lines(params, "portraits", tmp_path / "reports")
    assert line.startswith("UCE before fine-tuning: loss kept illegal -1.50, legal 0.90.")


def test_a_side_without_its_own_score_speaks_through_the_first() -> None:
    assert [side_score(["nudenet", "fid"], side) for side in ("illegal", "legal")] == ["nudenet", "fid"]
    assert [side_score(["nudenet", "clip"], side) for side in ("illegal", "legal")] == ["nudenet", "nudenet"]
