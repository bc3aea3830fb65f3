"""What `attack` and `bound` found, in few lines beside a study's findings: read from the tables that they write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.reports.beside import beside
from freezeasguard.reports.findings import write_findings
from freezeasguard.reports.rendering import write_table
from freezeasguard.reports.summary import write_rows
from freezeasguard.users.attacks import HEADER, Attack, arm_rows
from freezeasguard.users.bound import Explained, table
from test_findings import LEARNED, MARKS, seeds


def attacked(folder: Path, case: str, longer: bool = True, published: bool = True) -> None:
    """Two rates, and more steps; by side: the slow rate serves the illegal user, the fast one the legal user."""
    usual = [Attack(60, 1e-4), Attack(60, 5e-4)]
    attacks = [*usual, *([Attack(240, 1e-4)] if longer else []), *([Attack(0, 1e-4)] if published else [])]
    values = {Attack(60, 1e-4): (0.5, 0.6), Attack(60, 5e-4): (0.4, 0.9), Attack(240, 1e-4): (1.1, 1.2)}
    values[Attack(0, 1e-4)] = 0.0, 0.1
    rows = []
    for arm, label, less in (("full", "Full FT", 0.0), ("anchored", "Anchored", 0.3)):
        kept = {
            (arm, one, side, part): [value - less - 0.01, value - less + 0.01]
            for one in attacks
            for side, value in zip(("illegal", "legal"), values[one], strict=True)
            for part in ("adaptation", "held_out")
        }
        rows += arm_rows(label, arm, attacks, usual, kept)
    (folder / "attacks" / case).mkdir(parents=True)
    write_table(folder / "attacks" / case / "attacks", "", HEADER, rows, [])


def bounded(folder: Path, case: str) -> None:
    kept = {f"best-{i}": {"illegal": 0.5 - 0.01 * i, "legal": 0.8} for i in range(5)}
    kept |= {f"blind-{i}": {"illegal": 0.7, "legal": 0.7 + 0.01 * i} for i in range(5)}
    found = {"linear": Explained(0.2, 0.01), "quadratic": Explained(-0.1, 0.6)}
    (folder / "bound" / case).mkdir(parents=True)
    write_table(folder / "bound" / case / "bound", "", *table(np.array([0.1, -0.1, 0.0]), found, kept, "linear", 0.9))


def test_nothing_was_asked(tmp_path: Path) -> None:
    assert beside(tmp_path) == []


def test_each_side_at_its_best_rate_and_who_trains_longer(tmp_path: Path) -> None:
    for case in ("portraits", "artworks"):
        attacked(tmp_path, case)
    text, lines = beside(tmp_path)
    assert "freezeasguard attack" in text
    assert lines.splitlines() == [
        "| Case, protection | as published | the best rate | 4 times the steps |",
        "| --- | --- | --- | --- |",
        "| artworks, Full FT | 0.00 / 0.10 | 0.50 / 0.90 | 1.10 / 1.20 |",
        "| artworks, Anchored | -0.30 / -0.20 | 0.20 / 0.60 | 0.80 / 0.90 |",
        "| portraits, Full FT | 0.00 / 0.10 | 0.50 / 0.90 | 1.10 / 1.20 |",
        "| portraits, Anchored | -0.30 / -0.20 | 0.20 / 0.60 | 0.80 / 0.90 |",
    ]


def test_who_never_trained_longer_leaves_a_gap_in_the_table(tmp_path: Path) -> None:
    attacked(tmp_path, "portraits", longer=False, published=False)
    assert beside(tmp_path)[1].splitlines()[2] == "| portraits, Full FT | - | 0.50 / 0.90 | - |"


def test_the_bound_is_a_line_a_case(tmp_path: Path) -> None:
    bounded(tmp_path, "artworks")
    text, lines = beside(tmp_path)
    assert "freezeasguard bound" in text
    (row,) = lines.splitlines()[2:]
    assert row.startswith("| artworks | +0.000, SD 0.100 | linear +0.20 (p 0.010), quadratic -0.10 (p 0.600) |")
    assert "| 0.48 / 0.80 | 0.70 / 0.72 | +0.300 [" in row


def test_they_end_the_answers_and_the_readmes_block(tmp_path: Path) -> None:
    attacked(tmp_path, "portraits")
    bounded(tmp_path, "portraits")
    cells, readme = tmp_path / "study" / "cells.csv", tmp_path / "README.md"
    cells.parent.mkdir()
    write_rows(cells, seeds("anchored", LEARNED))
    readme.write_text("\n".join([MARKS[0], MARKS[1], ""]))
    _, answer = write_findings(cells, readme, beside(tmp_path))
    for paragraph in beside(tmp_path):
        assert paragraph in answer.read_text() and paragraph in readme.read_text()


def test_a_table_without_rows_is_named(tmp_path: Path) -> None:
    attacked(tmp_path, "portraits")
    (tmp_path / "attacks/portraits/attacks.csv").write_text(",".join(HEADER) + "\n")
    with pytest.raises(FreezeAsGuardError, match="attacks.csv has no rows; run `freezeasguard attack portraits` again"):
        beside(tmp_path)
