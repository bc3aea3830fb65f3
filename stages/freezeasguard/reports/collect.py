"""The cells of many experiments in one file: what the study's tables are made of.

Every experiment - this workspace, and each one that DVC keeps under `refs/exps` - holds its own `reports/cells.csv`
in git, so that nothing is run, restored or checked out here.
"""

from __future__ import annotations

import csv
import io
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from freezeasguard.arms import Arm
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import fingerprint, write_atomically
from freezeasguard.reports.summary import CELLS, COLUMNS, cell_settings
from freezeasguard.reports.summary import _other_settings as other_settings
from freezeasguard.settings.origins import leaves
from freezeasguard.settings.params import PARAMS, Params, parse_params
from freezeasguard.settings.pins import PINS, pinned, read_pins
from freezeasguard.settings.reading import parse_yaml

Row = dict[str, str]
KEY = (
    "profile", "seed", "roles", "rho", "preset", "illegal_weight", "settings", "case", "arm", "side",
)  # fmt: skip
"""Two rows that agree in these are one cell."""
APART = "apart"
"""Column of the collected cells alone: in words, what a cell's settings do not share with those of its arm's others."""
EXPERIMENT_REF = re.compile(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/(?P<name>[^/]+)")
"""DVC's own names for experiments, and not its stashes, its queue and what it holds while it runs one."""


def read_cells(text: str, source: str) -> list[Row]:
    """The rows of a `cells.csv`; columns that this version does not know are left out, and `APART` is always there."""
    reader = csv.DictReader(io.StringIO(text))
    if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        raise FreezeAsGuardError(
            f"{CELLS} of {source} has no column {missing[0]!r}: another version wrote it; run it again, or drop it "
            "(`dvc exp remove NAME`, or delete the file)"
        )
    return [{name: row.get(name) or "" for name in (*COLUMNS, APART)} for row in reader]


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails."""
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def experiment_cells(root: Path) -> list[tuple[str, list[Row]]]:
    """(its ref in git, its rows) of every experiment, the newest first; those without the file have none."""
    found = []
    refs = _git(root, "for-each-ref", "--sort=-committerdate", "--format=%(refname)", "refs/exps") or ""
    for ref in refs.splitlines():
        if not (name := EXPERIMENT_REF.fullmatch(ref)):
            continue
        text = _git(root, "show", f"{ref}:./reports/{CELLS}")  # ./: the project may lie below git's root
        if text is not None:
            found.append((ref, read_cells(text, f"experiment {name['name']}")))
    return found


def _place(row: Row) -> tuple[object, ...]:
    """Sorts numbers as numbers."""
    numbers = ("seed", "rho", "illegal_weight")
    return tuple(float(row[key] or -1) if key in numbers else row[key] for key in KEY)


def settings_of(
    text: str, source: str, rows: Sequence[Row], pins: dict[str, str] | None = None
) -> dict[str, dict[str, str]]:
    """The column `settings` of each row -> what it stands for, by the params.yaml that the rows were made with.

    Nothing of rows that another params.yaml made, as a workspace's that was edited since, or another version's.
    """
    try:
        filled = pinned(parse_params(parse_yaml(text, Path(source)), Path(source)), pins or {})
    except FreezeAsGuardError:
        return {}
    params = Params.model_validate(filled.model_dump(mode="json"))  # as stages read it, with 10.0 for a default 10
    found = {}
    for case, name, settings in {(row["case"], row["arm"], row["settings"]) for row in rows}:
        arm = Arm.parse(name)
        if case in params.cases and other_settings(params, case, arm) == settings:
            blocks = cell_settings(params, case, arm)
            domain, model = params.domain_of(case), params.models[params.cases[case].model]
            blocks |= {"domain": domain.model_dump(mode="json"), "model": model.model_dump(mode="json")}
            found[settings] = {  # of a list its fingerprint, as it may be long
                key: fingerprint(value)[:8] if isinstance(value, list) else str(value) for key, value in leaves(blocks)
            }
    return found


def tell_apart(rows: Sequence[Row], known: Callable[[Row], Mapping[str, str] | None]) -> None:
    """Write into `APART`, where an arm's rows of one profile and case are of several settings, what sets each apart.

    Args:
        known: a row's settings by dotted key; None where nobody knows them, and then its words stay as they are.
    """
    groups: dict[tuple[str, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        arm = replace(Arm.parse(row["arm"]), draw=0).name
        groups[row["profile"], row["case"], arm][row["settings"]].append(row)
    for group in groups.values():
        if len(group) < 2:
            continue
        blocks = {settings: block for settings, (row, *_) in group.items() if (block := known(row))}
        keys = sorted({key for block in blocks.values() for key in block})
        differ = [key for key in keys if len({block.get(key) for block in blocks.values()}) > 1]
        for settings, block in blocks.items():
            words = ", ".join(f"{key.rpartition('.')[2]} {block.get(key, '-')}" for key in differ)
            for row in group[settings]:
                row[APART] = words or row[APART]


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
    experiments = experiment_cells(root)
    rows: dict[tuple[str, ...], Row] = {}
    for source in (workspace, *(cells for _, cells in experiments), so_far):
        for row in source:
            kept = rows.setdefault(tuple(row[key] for key in KEY), row)
            kept[APART] = kept[APART] or row[APART]  # known from when the other settings' experiments were here
    if not rows:
        raise FreezeAsGuardError(
            f"neither the workspace nor an experiment holds reports/{CELLS} of the profile {profile!r}; run "
            "`dvc repro`, or `dvc exp run`"
        )

    known: dict[str, dict[str, str]] = {}
    pins = read_pins(root / PINS)

    def settings(row: Row) -> dict[str, str] | None:
        """Looked for where the first row with them came from; few rows ask."""
        wanted = row["settings"]
        for ref, cells in (("", workspace), *experiments):
            if wanted not in known and any(one["settings"] == wanted for one in cells):
                text = _git(root, "show", f"{ref}:./{PARAMS}") if ref else (root / PARAMS).read_text()
                known.update(settings_of(text or "", f"{PARAMS} of {ref or 'the workspace'}", cells, pins))
        return known.get(wanted)

    found = sorted(rows.values(), key=_place)
    tell_apart(found, settings)
    with write_atomically(out) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, (*COLUMNS, APART), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    return out
