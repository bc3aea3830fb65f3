"""The study's arithmetic: kept shares, roles that take turns, intervals over seeds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_json
from freezeasguard.settings.params import parse_params, profile_text
from freezeasguard.study_report import (
    curve_rows,
    kept_by_kind,
    side_score,
    student_interval,
    study_table,
    write_study_report,
)


def row(name: str, data_side: str, loss: float, score: float, role: str | None = None, **more: Any) -> dict[str, Any]:
    base = {"granularity": "tensor", "rho": 0.3, "illegal_weight": None, "setting": ""}
    sizes = {"share_of_parameters_frozen": 0.25, "mask_bytes": 2048}
    scores = {"recogniser": score}
    return {
        **base,
        **sizes,
        "n_images": 16,
        "name": name,
        "data_side": data_side,
        "role": role,
        "fixed_noise_loss": loss,
        "scores": scores,
        **more,
    }


def study(seed: int = 0, shift: float = 0.0) -> dict[str, Any]:
    """Side "illegal" falls from 1.0 to 0.5, side "legal" from 0.8 to 0.6; scores from 0.9 to 0.4 and to 0.7."""
    ends = [
        row("pretrained", "illegal", 1.0, 0.9, rho=0.0),
        row("pretrained", "legal", 0.8, 0.9, rho=0.0),
        row("full", "illegal", 0.5, 0.4, rho=0.0),
        row("full", "legal", 0.6, 0.7, rho=0.0),
    ]
    learned = [
        row("freezeasguard", "illegal", 0.75, 0.65, "given", illegal_weight=0.5),  # keeps 0.5
        row("freezeasguard", "legal", 0.64 - shift, 0.72, "given", illegal_weight=0.5),  # keeps 0.8 + 5 shift
        row("freezeasguard", "illegal", 0.6, 0.5, "swapped", illegal_weight=0.5),  # keeps 0.8, legal there
        row("freezeasguard", "legal", 0.68, 0.8, "swapped", illegal_weight=0.5),  # keeps 0.6, illegal there
    ]
    blind = [
        row("random-0", "illegal", 0.55, 0.45),
        row("random-0", "legal", 0.66, 0.75),
        row("random-1", "illegal", 0.6, 0.5),
        row("random-1", "legal", 0.64, 0.75),
    ]
    return {
        "study": {"seed": seed, "masks": True, "case": "portraits"},
        "domain": "portraits",
        "classes": {"illegal": ["a"], "legal": ["b"]},
        "scores": ["recogniser"],
        "adapt": {"steps": 60, "batch_size": 8},
        "rows": [*ends, *learned, *blind],
    }


def test_kept_is_averaged_over_roles_and_draws() -> None:
    kept = {k.kind.name: k for k in kept_by_kind(study())}
    assert kept["freezeasguard"].kept["loss", "illegal"] == pytest.approx((0.5 + 0.6) / 2)
    assert kept["freezeasguard"].kept["loss", "legal"] == pytest.approx((0.8 + 0.8) / 2)
    assert kept["freezeasguard"].gap("loss") == pytest.approx(0.25)
    assert kept["freezeasguard"].kept["score", "illegal"] == pytest.approx((0.5 + 0.5) / 2)
    assert kept["pretrained"].gap("loss") == kept["full"].gap("loss") == 0
    assert kept["full"].kept["loss", "legal"] == 1 and kept["pretrained"].kept["loss", "legal"] == 0


def test_no_share_is_kept_of_a_score_that_full_finetuning_does_not_better() -> None:
    def kept(pretrained: float, full: float, score: str) -> float:
        one = study()
        one["scores"] = [score]
        for each in one["rows"]:
            ends = {"pretrained": pretrained, "full": full}
            each["scores"] = {score: ends.get(each["name"], (pretrained + full) / 2)}
        return {k.kind.name: k for k in kept_by_kind(one)}["random"].kept["score", "illegal"]

    assert kept(0.9, 0.4, "recogniser") == pytest.approx(0.5)
    assert kept(0.4, 0.9, "clip_tiny") == pytest.approx(0.5)
    assert math.isnan(kept(0.4, 0.9, "recogniser")) and math.isnan(kept(0.9, 0.4, "clip_tiny"))
    assert math.isnan(kept(1.0, 0.96, "recogniser"))


def test_a_blind_masks_gap_is_zero_by_construction() -> None:
    random = next(k for k in kept_by_kind(study()) if k.kind.name == "random")
    both = ((0.9 + 0.8) / 2 + (0.7 + 0.8) / 2) / 2
    assert random.kept["loss", "illegal"] == random.kept["loss", "legal"] == pytest.approx(both)
    assert random.gap("loss") == random.gap("score") == 0


def test_interval_over_seeds_is_students() -> None:
    mean, low, high = student_interval([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2)
    reach = 4.302653 * 0.1 / 3**0.5  # the 97.5% quantile at two degrees of freedom
    assert (low, high) == (pytest.approx(0.2 - reach, rel=1e-5), pytest.approx(0.2 + reach, rel=1e-5))
    assert student_interval([0.1]) == (0.1, float("-inf"), float("inf"))


def test_table_has_a_row_a_kind_with_its_seeds() -> None:
    header, rows = study_table([study(0), study(1, 0.02), study(2, 0.04)], 0.3)
    assert [r[0] for r in rows] == ["freezeasguard", "random"] and all(len(r) == len(header) for r in rows)
    assert rows[0][2:5] == ["25%", "2 kB", "3"]
    assert rows[0][5:8] == ["0.55", "0.85", "+0.300 [+0.176, +0.424]"]
    assert rows[1][7] == "+0.000 [+0.000, +0.000]"


def test_curves_have_a_row_a_ratio_and_weight() -> None:
    one = study()
    learned = [r for r in one["rows"] if r["name"] == "freezeasguard"]
    one["rows"] += [{**r, "rho": 0.1} for r in learned]
    one["rows"] += [{**r, "illegal_weight": 0.7, "fixed_noise_loss": r["fixed_noise_loss"] - 0.01} for r in learned]
    header, rows = curve_rows([one])
    assert [r[:3] for r in rows] == [["tensors", "0.1", "0.5"], ["tensors", "0.3", "0.5"], ["tensors", "0.3", "0.7"]]
    assert rows[0][3:6] == rows[1][3:6] == ["0.55", "0.80", "+0.25"] and all(len(r) == len(header) for r in rows)
    # 0.01 is 0.02 of one side's fall of 0.5, and 0.05 of the other's of 0.2
    assert [float(cell) for cell in rows[2][3:6]] == pytest.approx([0.585, 0.835, 0.25], abs=0.006)


def test_explicit_sides_speak_through_their_own_scores() -> None:
    names = ["nudenet_faces", "nudenet_faces_rate", "fd_efficientnet_lite0", "clip_tiny"]
    assert side_score(names, "illegal") == "nudenet_faces" and side_score(names, "legal") == "fd_efficientnet_lite0"
    assert side_score(["recogniser", "clip_tiny"], "legal") == "recogniser"


def test_report_is_written_whole_and_a_missing_study_is_named(tmp_path: Path) -> None:
    values = yaml.safe_load(profile_text("smoke"))
    values["studies"] = {"p-0": {"case": "portraits", "seed": 0}}
    values["study_tables"] = {"portraits": ["p-0"]}
    params = parse_params(values, Path("params.yaml"))
    with pytest.raises(FreezeAsGuardError, match="dvc repro study@p-0"):
        write_study_report(params, "portraits", tmp_path)
    assert not (tmp_path / "study/tables/portraits").exists()
    write_json(tmp_path / "study/results/p-0.json", study())
    (path,) = write_study_report(params, "portraits", tmp_path)
    assert "| freezeasguard" in path.read_text() and path.with_name("curves.png").is_file()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("studies", {"x": {"case": "nobody", "seed": 0}}, "studies.x.case is 'nobody'"),
        ("study_tables", {"t": ["x"]}, "study_tables.t names 'x'"),
    ],
)
def test_unknown_names_are_told(key: str, value: object, said: str) -> None:
    values = {**yaml.safe_load(profile_text("smoke")), key: value}
    with pytest.raises(FreezeAsGuardError) as error:
        parse_params(values, Path("params.yaml"))
    assert said in str(error.value)
