"""What stands beside a study's findings: what else was asked of its protections, case by case, in few lines.

Read from the tables of `freezeasguard attack` and `freezeasguard bound`, where those were run; Markdown for the README
and for the study's answers.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.reports.rendering import compact_table
from freezeasguard.sides import SIDES

PUBLISHED = "as published"
"""Of the attacks' table: before anybody trains."""
BEST_RATE = "the best rate"
"""Of the attacks' table: each side takes the rate that keeps the most at the usual steps."""
DRAWN, EXPLAINED = "Drawn masks: gap, mean and SD", "Explained of it by groups, {}: R^2 out of sample"
PREDICTED, BLIND, WIDER = "Predicted best, never tried before", "Blind", "Best over blind"
"""Of the bound's table."""
STEPS = re.compile(r", (\d+) steps$")

Row = dict[str, str]


def beside(reports: Path) -> list[str]:
    """A paragraph and a table each; none where neither command has left its tables below `reports`."""
    return [*_attacks(reports / "attacks"), *_bounds(reports / "bound")]


def _tables(folder: Path, name: str, again: str) -> list[tuple[str, list[Row]]]:
    """(case, rows) by the case's name."""
    found = []
    for path in sorted(folder.glob(f"*/{name}.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise FreezeAsGuardError(f"{path} has no rows; run `freezeasguard {again} {path.parent.name}` again")
        found.append((path.parent.name, rows))
    return found


def _kept(row: Row) -> str:
    """Illegal / legal, without the users' range."""
    return " / ".join(row[f"Kept, {side}"].split(" (")[0] for side in SIDES)


def _attacks(folder: Path) -> list[str]:
    rows, times = [], set()
    for case, table in _tables(folder, "attacks", "attack"):
        steps = {int(found[1]) for row in table if (found := STEPS.search(row["Attack"]))}
        longest = {row["Protection"]: row for row in table if row["Attack"].endswith(f", {max(steps)} steps")}
        before = {row["Protection"]: _kept(row) for row in table if row["Attack"] == PUBLISHED}
        longer = len(steps) > 1
        times |= {max(steps) // min(steps)} if longer else set()
        for row in table:
            if row["Attack"] == BEST_RATE:
                label = row["Protection"]
                after = _kept(longest[label]) if longer else "-"
                rows.append([f"{case}, {label}", before.get(label, "-"), _kept(row), after])
    if not rows:
        return []
    often = " or ".join(map(str, sorted(times))) or "more"
    return [
        "Against other users (`freezeasguard attack`, in reports/attacks). Kept of the loss, illegal / legal, before "
        "anybody trains, by users who take the best of several rates, and by users who train longer at the usual one; "
        "1 is full fine-tuning at its best rate. One protected model a case. CASE-users-of-OTHER: who trains on "
        "OTHER's images is of neither side, and nobody whom CASE is to be protected from.",
        compact_table(["Case, protection", PUBLISHED, BEST_RATE, f"{often} times the steps"], rows),
    ]


def _bounds(folder: Path) -> list[str]:
    rows = []
    for case, table in _tables(folder, "bound", "bound"):
        of = {row[""]: row for row in table}
        explained = [
            f"{name} {row['Gap [95%]']} (p {row['p']})"
            for name in ("linear", "quadratic")
            if (row := of.get(EXPLAINED.format(name)))
        ]
        wider = f"{of[WIDER]['Gap [95%]']} (p {of[WIDER]['p']})"
        rows.append([case, of[DRAWN]["Gap [95%]"], ", ".join(explained), _kept(of[PREDICTED]), _kept(of[BLIND]), wider])
    if not rows:
        return []
    header = [
        "Case",
        "Gap of drawn masks",
        "R^2 out of sample",
        "Kept, predicted best",
        "Kept, blind",
        "Wider by [95%]",
    ]
    return [
        "How wide a gap any mask of whole tensors could open, where its ratio binds (`freezeasguard bound`, in "
        "reports/bound). By loss: masks drawn at random, what the shares of the groups of tensors explain of "
        "their gaps, and the masks that they predict to be best, on fresh users beside blind masks.",
        compact_table(header, rows),
    ]
