"""The cells of many experiments in one file: what the study's tables are made of.

Every experiment - this workspace, and each one that DVC keeps under `refs/exps` - holds its own `reports/cells.csv`
in git, so that nothing is run, restored or checked out here.
"""

from __future__ import annotations

import csv
import io
import re
import subprocess
from pathlib import Path

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.reports.summary import CELLS, COLUMNS, write_rows

Row = dict[str, str]
KEY = (
    "profile", "seed", "roles", "rho", "preset", "illegal_weight", "settings", "case", "arm", "side",
)  # fmt: skip
"""Two rows that agree in these are one cell."""
EXPERIMENT_REF = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/(?P<name>[^/]+)")
"""DVC's own names for experiments, and not its stashes, its queue and what it holds while it runs one."""


def read_cells(text: str, source: str) -> list[Row]:
    """The rows of a `cells.csv`; columns that this version does not know are left out."""
    reader = csv.DictReader(io.StringIO(text))
    if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise FreezeAsGuardError(
            f"{CELLS} of {source} has no column {missing[0]!r}: another version wrote it; run it again, or drop it "
            "(`dvc exp remove NAME`, or delete the file)"
        )
    return [{name: row[name] or "" for name in COLUMNS} for row in reader]


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails."""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def experiment_cells(root: Path) -> list[tuple[str, list[Row]]]:
    """(experiment, its rows), the newest first; experiments without the file have none."""
    found = []
    refs = _git(root, "for-each-ref", "--sort=-committerdate", "--format=%(refname)", "refs/exps") or ""
    for ref in refs.splitlines():
        if not (name := EXPERIMENT_REF.fullmatch(ref)):
            continue
        text = _git(root, "show", f"{ref}:./reports/{CELLS}")  # ./: the project may lie below git's root
        if text is not None:
            found.append((name["name"], read_cells(text, f"experiment {name['name']}")))
    return found


def _place(row: Row) -> tuple[object, ...]:
    """Sorts numbers as numbers."""
    numbers = ("seed", "rho", "illegal_weight")
    return tuple(float(row[key] or -1) if key in numbers else row[key] for key in KEY)


def collect_cells(root: Path, profile: str) -> Path:
    """Gather the workspace's cells and those of all experiments into `reports/study/cells.csv`; returns its path.

    Of two rows of one cell the workspace's counts, then the newest experiment's, then what the file held already: a
    clone has the file and not the experiments.

    Args:
        profile: of params.yaml. The workspace's cells that are of another one came with git and do not count.
    """
    out = root / "reports" / "study" / CELLS
    files = {"the workspace": root / "reports" / CELLS, "the study so far": out}
    workspace, so_far = (
        read_cells(path.read_text(), source) if path.is_file() else [] for source, path in files.items()
    )
    workspace = [row for row in workspace if row["profile"] == profile]
    rows: dict[tuple[str, ...], Row] = {}
    for source in (workspace, *(cells for _, cells in experiment_cells(root)), so_far):
        for row in source:
            rows.setdefault(tuple(row[key] for key in KEY), row)
    if not rows:
        raise FreezeAsGuardError(
            f"neither the workspace nor an experiment holds reports/{CELLS} of the profile {profile!r}; run "
            "`dvc repro`, or `dvc exp run`"
        )
    return write_rows(out, sorted(rows.values(), key=_place))
