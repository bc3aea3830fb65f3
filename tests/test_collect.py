"""The study: cells gathered from git's experiments, and the arithmetic of its tables."""

from __future__ import annotations

import csv
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest

from freezeasguard.arms import Arm
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.reports.collect import APART, collect_cells, read_cells, settings_of
from freezeasguard.reports.study import (
    Kind,
    compared_roles,
    kept_by_kind,
    student_interval,
    study_rows,
    write_study_tables,
)
from freezeasguard.reports.summary import COLUMNS, write_rows
from freezeasguard.reports.summary import _other_settings as cell_hash
from freezeasguard.settings.params import PARAMS, Params, parse_params
from freezeasguard.settings.profiles import profile_text
from freezeasguard.settings.reading import parse_yaml

Row = dict[str, str]


def row(arm: str, side: str, kept_loss: float | None, *, roles: str = "given", seed: int = 0, **more: Any) -> Row:
    method, _, _ = arm.partition("-")
    base: dict[str, Any] = {
        "profile": "study", "seed": seed, "roles": roles, "rho": 0.3, "preset": "freezeasguard",
        "illegal_weight": 0.5 if method == "freezeasguard" else "", "settings": "abc", "case": "portraits", "arm": arm,
        "method": method, "granularity": "tensor", "arm_rho": 0.0 if method == "full" else 0.3, "draw": 0,
        "side": side, "classes": f"{side}-{seed}", "loss": 0.1, "kept_loss": kept_loss, "score_name": "recogniser",
        "score": 0.5, "low": 0.4, "high": 0.6, "kept_score": kept_loss, "share_of_parameters_frozen": 0.25,
        "mask_bytes": 2048, "n": 16,
    }  # fmt: skip
    return {key: "" if value is None else str(value) for key, value in (base | more).items()}


def study(seed: int = 0, shift: float = 0.0, **more: Any) -> list[Row]:
    learned = [
        row("freezeasguard", "illegal", 0.5, seed=seed, **more),
        row("freezeasguard", "legal", 0.8 + 5 * shift, seed=seed, **more),
        row("freezeasguard", "illegal", 0.6, roles="swapped", seed=seed, **more),
        row("freezeasguard", "legal", 0.8, roles="swapped", seed=seed, **more),
    ]
    # a blind mask keeps 0.9 and 0.8 of the first classes in two draws, 0.7 and 0.8 of the others, whatever their role
    first, second = {"random": 0.9, "random-draw1": 0.8}, {"random": 0.7, "random-draw1": 0.8}
    blind = [
        row(arm, side, kept, roles=roles, seed=seed, **more)
        for arm in first
        for roles, sides in (("given", (first, second)), ("swapped", (second, first)))
        for side, kept in zip(("illegal", "legal"), (side[arm] for side in sides), strict=True)
    ]
    full = [row("full", side, 1.0, roles=roles, seed=seed) for roles in ("given", "swapped") for side in SIDES]
    return [*full, *learned, *blind]


SIDES = ("illegal", "legal")


def test_kept_is_averaged_over_roles_and_draws() -> None:
    kept = {kind.arm.name: one for kind, (one,) in kept_by_kind(study()).items()}
    assert list(kept) == ["freezeasguard", "random"]
    assert kept["freezeasguard"].kept["loss", "illegal"] == pytest.approx((0.5 + 0.6) / 2)
    assert kept["freezeasguard"].kept["loss", "legal"] == pytest.approx((0.8 + 0.8) / 2)
    assert kept["freezeasguard"].gap("loss") == pytest.approx(0.25)
    assert kept["random"].kept["loss", "illegal"] == pytest.approx((0.85 + 0.75) / 2)
    assert kept["random"].gap("loss") == pytest.approx(0)


def test_roles_weigh_alike_however_many_draws_one_of_them_has() -> None:
    rows = [one for one in study() if one["arm"] != "random-draw1" or one["roles"] == "given"]
    (one,) = next(found for kind, found in kept_by_kind(rows).items() if kind.arm.name == "random")
    assert one.kept["loss", "illegal"] == pytest.approx(((0.9 + 0.8) / 2 + 0.7) / 2)


def test_a_repetition_is_a_seed_in_both_roles() -> None:
    rows = [*study(0), *study(1), *(one for one in study(2) if one["roles"] == "given")]
    assert compared_roles(rows) == (["given", "swapped"], ["0", "1"])
    assert all(len(ones) == 2 for ones in kept_by_kind(rows).values())
    alone = [one for one in rows if one["roles"] == "given"]
    assert compared_roles(alone) == (["given"], ["0", "1", "2"])
    (first, *_) = kept_by_kind(alone).values()
    assert [one.gap("loss") for one in first] == pytest.approx([0.3] * 3)


def test_interval_over_seeds_is_students() -> None:
    mean, low, high = student_interval([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2)
    reach = 4.302653 * 0.1 / 3**0.5  # the 97.5% quantile at two degrees of freedom
    assert (low, high) == (pytest.approx(0.2 - reach, rel=1e-5), pytest.approx(0.2 + reach, rel=1e-5))
    assert student_interval([0.1]) == (0.1, float("-inf"), float("inf"))


def test_table_has_a_row_a_kind_with_its_seeds() -> None:
    header, rows = study_rows([*study(0), *study(1, 0.02), *study(2, 0.04)])
    assert [r[0] for r in rows] == ["FG-30%", "R-30%"] and all(len(r) == len(header) for r in rows)
    assert rows[0][1:4] == ["25%", "2 kB", "3"]
    assert rows[0][4:7] == ["0.55", "0.85", "+0.300 [+0.176, +0.424]"]
    assert float(rows[1][6].split(" ")[0]) == 0
    assert study_rows(study())[1][0][6] == "+0.250"  # of one seed no interval is told


def test_ratios_and_weights_have_rows_of_their_own() -> None:
    more = [one for one in study(rho=0.5, arm_rho=0.5) if one["method"] == "freezeasguard"]
    heavy = [one for one in study(illegal_weight=0.7, shift=0.02) if one["arm"] == "freezeasguard"]
    header, rows = study_rows([*study(), *more, *heavy])
    assert header[:2] == ["Mask", "Illegal weight"]
    assert [r[:2] for r in rows] == [["FG-30%", "0.5"], ["FG-30%", "0.7"], ["FG-50%", "0.5"], ["R-30%", "-"]]
    assert rows[1][7] == "+0.300" and rows[0][7] == rows[2][7] == "+0.250"


def test_another_preset_or_other_settings_never_pass_for_one() -> None:
    other = [one for one in study(preset="paper", shift=0.02) if one["arm"] == "freezeasguard"]
    header, rows = study_rows([*study(), *other])
    assert "Preset" in header and [r[:2] for r in rows][:2] == [["FG-30%", "freezeasguard"], ["FG-30%", "paper"]]
    longer = [one for one in study(settings="def", shift=0.02) if one["arm"] == "freezeasguard"]
    header, rows = study_rows([*study(), *longer])
    assert "Settings" in header and [r[:2] for r in rows][:2] == [["FG-30%", "abc"], ["FG-30%", "def"]]


def test_a_share_that_is_not_known_leaves_no_average() -> None:
    rows = study()
    rows[4]["kept_score"] = ""
    (learned, _) = kept_by_kind(rows).items()
    kind, (one,) = learned
    assert kind.arm.name == "freezeasguard" and math.isnan(one.kept["score", "illegal"])
    _, table = study_rows(rows)
    assert table[0][7:] == ["-", "0.80", "-"]


def test_kinds_know_what_made_them() -> None:
    blind, learned = (Kind.of(row(arm, "legal", 0.5, illegal_weight=0.5)) for arm in ("random-70-draw2", "one_shot"))
    assert blind.arm.name == "random" and blind.illegal_weight is None and blind.preset == ""
    assert learned.illegal_weight == 0.5 and learned.preset == "freezeasguard"


# --- collecting ---------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def commit_cells(root: Path, rows: list[Row], ref: str) -> None:
    """A commit that holds the rows, under a ref, as DVC keeps an experiment; the workspace stays as it is."""
    write_rows(root / "reports/cells.csv", rows)
    git(root, "add", "-A")
    git(root, "commit", "-q", "--allow-empty", "-m", ref)
    git(root, "update-ref", ref, "HEAD")
    git(root, "reset", "-q", "--hard", "HEAD~1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "start")
    return tmp_path


def of_experiment(root: Path, name: str) -> str:
    baseline = git(root, "rev-parse", "HEAD")
    return f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}"


def collected(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_workspace_and_experiments_are_gathered_once_each(root: Path) -> None:
    commit_cells(root, [row("full", "legal", 1.0, seed=10), row("random", "legal", 0.1)], of_experiment(root, "first"))
    commit_cells(root, [row("full", "legal", 1.0, seed=2), row("imma", "legal", 0.2)], of_experiment(root, "second"))
    for odd in ("stash", "exec/EXEC_HEAD", "exec/EXEC_BRANCH", "celery/stash", "apply/ORIG_HEAD", "temp/x"):
        commit_cells(root, [row("full", "legal", 0.0, seed=77)], f"refs/exps/{odd}")
    write_rows(root / "reports/cells.csv", [row("random", "legal", 0.3)])
    path = collect_cells(root, "study")
    assert path == root / "reports/study/cells.csv"
    found = [(one["arm"], one["seed"], one["kept_loss"]) for one in collected(path)]
    # sorted, numbers as numbers; the workspace's value counts
    assert found == [("imma", "0", "0.2"), ("random", "0", "0.3"), ("full", "2", "1.0"), ("full", "10", "1.0")]
    before = path.read_bytes()
    assert collect_cells(root, "study").read_bytes() == before


def test_a_clone_without_experiments_keeps_what_was_gathered(root: Path) -> None:
    commit_cells(root, [row("full", "legal", 1.0, seed=10)], of_experiment(root, "first"))
    path = collect_cells(root, "study")
    git(root, "update-ref", "-d", of_experiment(root, "first"))
    assert len(collected(collect_cells(root, "study"))) == 1
    path.unlink()
    with pytest.raises(FreezeAsGuardError, match="neither the workspace nor an experiment"):
        collect_cells(root, "study")


def test_the_workspaces_cells_of_another_profile_came_with_git(root: Path) -> None:
    commit_cells(root, [row("full", "legal", 1.0, seed=1)], of_experiment(root, "first"))
    write_rows(root / "reports/cells.csv", [row("full", "legal", 1.0, profile="tiny")])
    assert [one["profile"] for one in collected(collect_cells(root, "study"))] == ["study"]
    assert {one["profile"] for one in collected(collect_cells(root, "tiny"))} == {"study", "tiny"}


def test_an_illegal_weight_makes_a_cell_of_its_own(root: Path) -> None:
    rows = [row("freezeasguard", "legal", 0.5), row("freezeasguard", "legal", 0.6, illegal_weight=0.7)]
    write_rows(root / "reports/cells.csv", rows)
    assert len(collected(collect_cells(root, "study"))) == 2


def test_cells_of_another_version_are_named() -> None:
    with pytest.raises(FreezeAsGuardError, match=r"experiment abc has no column 'profile'.*dvc exp remove"):
        read_cells("seed,roles\n0,given\n", "experiment abc")
    found = read_cells(",".join([*COLUMNS, "more"]) + "\n" + ",".join("x" * 26), "x")[0]
    assert tuple(found) == (*COLUMNS, APART) and found[APART] == ""


def test_settings_that_differ_are_told_in_words(root: Path) -> None:
    """By the params.yaml of the experiment that a row is of; a params.yaml that made other rows tells nothing."""
    base = profile_text("study")
    for name, weight in (("first", 2.0), ("second", 16.0)):
        text = base.replace("lambda_published: 4.0", f"lambda_published: {weight}")
        params = Params.model_validate(parse_params(parse_yaml(text, PARAMS), PARAMS).model_dump(mode="json"))
        (root / PARAMS).write_text(text)
        cells = [
            row(arm, "legal", value, settings=cell_hash(params, "portraits", Arm.parse(arm)))
            for arm, value in (("full", 1.0), ("anchored", weight), ("anchored-before", weight))
        ]
        commit_cells(root, cells, of_experiment(root, name))
    found = {(one["arm"], one["kept_loss"]): one[APART] for one in collected(collect_cells(root, "study"))}
    assert found == {("full", "1.0"): ""} | {
        (arm, weight): f"lambda_published {weight}"
        for arm in ("anchored", "anchored-before")
        for weight in ("2.0", "16.0")
    }
    git(root, "update-ref", "-d", of_experiment(root, "first"))
    again = {(one["arm"], one["kept_loss"]): one[APART] for one in collected(collect_cells(root, "study"))}
    assert again == found  # the words of what another machine ran stay
    header, rows = study_rows(read_cells((root / "reports/study/cells.csv").read_text(), "x"))
    assert [one[:2] for one in rows] == [
        ["Anchored", "lambda_published 2.0"], ["Anchored", "lambda_published 16.0"]
    ] and header[1] == "Settings"  # fmt: skip
    assert settings_of(base, "params.yaml", [row("full", "legal", 1.0, settings="of another")]) == {}
    assert settings_of("profile: [", "params.yaml", []) == {}


def test_study_tables_are_written_a_profile_and_case(root: Path) -> None:
    tiny = study(profile="tiny")
    tiny = [one for one in tiny if one["roles"] == "given" and one["profile"] == "tiny"]
    whole = [*study(0), *study(1), *(one for one in study(2) if one["roles"] == "given")]
    full = [row("full", side, 1.0, profile="tiny") for side in SIDES]
    path = write_rows(root / "reports/study/cells.csv", [*tiny, *full, *whole])
    written = write_study_tables(path)
    assert [p.relative_to(root).as_posix() for p in written] == [
        "reports/study/tables/tiny-portraits.md",
        "reports/study/tables/study-portraits.md",
    ]
    one_seed, both = (p.read_text() for p in written)
    assert "[" not in one_seed.split("\n- ")[0].split("\n", 4)[4] and "Roles given alone" in one_seed
    assert "Averaged over both" in both and "role assignment alone: seed 2" in both
    assert "seed 0: illegal-0 against legal-0; seed 1" in both and "by less than 5%" in both
