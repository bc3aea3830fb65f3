"""The paper's tables that gather several cases, arms or costs: 1, 5, 6, 7 and 8, laid out as it prints them.

Each case has a table of its own beside them (`tables`), with both sides, all scores and the differences.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from freezeasguard.arms import Arm
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.reading import read_json
from freezeasguard.reports.measures import CaseScores, score_entry
from freezeasguard.reports.paper import (
    GATHERED,
    OURS,
    TITLES,
    metric_label,
    n_classes,
    paper_value,
    paper_values,
    printed_metrics,
)
from freezeasguard.reports.rendering import write_table
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.params import Params
from freezeasguard.sides import SIDES

GIB = 2**30


def column_key(params: Params, case: str, table: int) -> str:
    """What tells the columns of a table apart: the model's version in Table 7, else the number of illegal classes."""
    of = params.cases[case]
    return of.model.rpartition("-")[2] if table == 7 else str(n_classes(of.illegal))


def cases_of(params: Params, table: int) -> dict[str, str]:
    """Column -> the case that fills it, in order; where the table has no case for it, one of the table it repeats.

    The paper prints Table 2's portraits again in Tables 5 and 7, and Table 3's artworks in Table 6; nothing of it has
    the roles swapped.
    """
    if params.roles != "given":
        return {}
    found: dict[str, str] = {}
    for wanted in (table, GATHERED.get(table)):
        for case, of in params.cases.items():
            if wanted and of.table == wanted and (found or wanted == table):
                found.setdefault(column_key(params, case, table), case)
    return dict(sorted(found.items(), key=lambda item: (len(item[0]), item[0])))


def shared_arms(params: Params, cases: list[str]) -> list[Arm]:
    """What all the cases have, in the first one's order, after fine-tuning."""
    return [arm for arm in params.arms(cases[0]) if not arm.before and all(arm in params.arms(case) for case in cases)]


def gathered_rows(params: Params, table: int, reports: Path) -> tuple[list[str], list[list[str]], list[str]]:
    """Tables 5, 6, 7: a row an arm; for each case and side our value with its interval and the paper's value."""
    columns = cases_of(params, table)
    scores = {case: CaseScores(params, case, reports) for case in columns.values()}
    names = {scores[case].speaks_for(side) for case in columns.values() for side in SIDES}
    if len(names) > 1:
        raise FreezeAsGuardError(
            f"params.yaml: the cases of table {table} are scored by {', '.join(sorted(names))}; give their domains one "
            "first score"
        )
    (name,) = names
    header, rows = ["Method"], []
    for key, case in columns.items():
        ours = params.cases[case].model if table == 7 else _counted(key)
        paper = f"SD {key}" if table == 7 else _counted(key)
        header += [text for side in SIDES for text in (f"{ours}, {side}", f"paper: {paper}, {side}")]
    arms = shared_arms(params, list(columns.values()))
    for arm in arms:
        row = [arm.label(params.rho)]
        for case in columns.values():
            for side in SIDES:
                printed = paper_value(params, case, arm, side, SCORES[name].paper_metric, table)
                row += [score_entry(name, scores[case].score(arm, side)), printed or "-"]
        rows.append(row)
    kind = SCORES[name]
    notes = [f"Ours: {kind.header}; paper: {kind.paper_label or '-'}. Cases: {', '.join(columns.values())}."]
    everyone = {arm.label(params.rho): arm for case in columns.values() for arm in params.arms(case) if not arm.before}
    if left := [label for label, arm in everyone.items() if arm not in arms]:
        notes.append(f"Not in all of these cases, so in their own tables alone: {', '.join(left)}.")
    return header, rows, notes


def _counted(key: str) -> str:
    return f"{key} class{'' if key == '1' else 'es'}"


def component_rows(params: Params, table: int, reports: Path) -> tuple[list[str], list[list[str]], list[str]]:
    """Table 1: a row a frozen component, the scores of the case's legal side, which is the captioned set."""
    (case,) = cases_of(params, table).values()
    names = params.domain_of(case).score_names()
    scores = CaseScores(params, case, reports)
    printed = printed_metrics(table)
    by_metric = {metric: [name for name in names if SCORES[name].paper_metric == metric] for metric in printed}
    header = ["Frozen"]
    for metric, ours in by_metric.items():
        header += [*(SCORES[name].header for name in ours), f"paper: {metric_label(metric)}"]
    rows = []
    for arm in shared_arms(params, [case]):
        row = [arm.label(params.rho)]
        for metric, ours in by_metric.items():
            row += [score_entry(name, scores.by_arm[arm.name]["legal"]["all"][name]) for name in ours]
            row.append(paper_value(params, case, arm, "legal", metric, table) or "-")
        rows.append(row)
    notes = [
        f"Case {case}. The paper fine-tunes on one captioned set; here that set is the legal side, whose users and "
        "images these are. The illegal side is trained as in any case, and is in the case's own table alone.",
        "Full FT is the paper's row without freezing; the case's random arms at 50% are, in their order, its seeds.",
    ]
    if none := [metric_label(metric) for metric, ours in by_metric.items() if not ours]:
        notes.append(f"No score of the domain stands in the place of {', '.join(none)}.")
    return header, rows, notes


# --- Table 8 -----------------------------------------------------------------------------------------


def read_costs(data: Path, case: str, arm: str) -> dict[str, dict[str, Any]]:
    """user -> device, steps, median_step_s, peak_bytes; null where nothing was measured."""
    path = data / "costs" / "adapt" / f"{case}-{arm}.json"
    return read_json(path, f"run `dvc repro -f adapt@{case}-{arm}`")


COSTS: dict[str, tuple[str, Callable[[list[float]], float]]] = {
    "median_step_s": ("seconds_per_batch", statistics.mean),
    "peak_bytes": ("gpu_memory_gb", max),
}
"""Key of a user's costs -> the paper's metric, and what is told of several users."""


def cost_ratios(costs: dict[str, Any], base: dict[str, Any], key: str) -> list[float]:
    """Each user's cost over that of the same user who trains every tensor; none where it was not measured."""
    pairs = [(costs[user][key], base[user][key]) for user in costs if user in base]
    return [own / of_base for own, of_base in pairs if own is not None and of_base]


def cost_case(params: Params) -> str | None:
    """The case of Table 8, else of Table 2, whose model and users it shares."""
    return next((case for table in (8, 2) for case in cases_of(params, table).values()), None)


def cost_arms(params: Params, case: str) -> dict[float, Arm]:
    """rho -> arm: full fine-tuning and the learned masks of whole tensors, which the paper's Table 8 is about."""
    arms = [a for a in params.arms(case) if not a.before and a.method in ("full", "freezeasguard")]
    found: dict[float, Arm] = {}
    for arm in arms:
        if arm.granularity == "tensor":
            found.setdefault(arm.rho(params.rho), arm)
    return dict(sorted(found.items()))


def cost_rows(params: Params, case: str, data: Path) -> tuple[list[str], list[list[str]], list[str]]:
    """Table 8: a row a freeze ratio; memory and seconds a step, and their ratios to no freezing, beside the paper's."""
    arms = cost_arms(params, case)
    costs = {rho: read_costs(data, case, arm.name) for rho, arm in arms.items()}
    header = ["rho", "Arm"]
    for label, unit in (("Step", "s"), ("Memory", "GiB")):
        header += [f"{label} ({unit}) ↓", f"{label}: ratio to no freezing", f"paper: {label} ({unit.replace('i', '')})"]
        header += [f"paper: {label}: ratio"]
    rows = []
    for rho, arm in arms.items():
        row = [f"{100 * rho:g}%", arm.label(params.rho)]
        for key, (metric, of_users) in COSTS.items():
            known = [user[key] for user in costs[rho].values() if user[key] is not None]
            value = of_users(known) / (GIB if key == "peak_bytes" else 1) if known else None
            ratios = cost_ratios(costs[rho], costs[0.0], key)
            own = f"{statistics.mean(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]" if ratios else "-"
            row += ["-" if value is None else f"{value:.3g}", own, *_paper_costs(metric, rho)]
        rows.append(row)
    devices = sorted({user["device"] for users in costs.values() for user in users.values()})
    notes = [
        f"Case {case}, model {params.cases[case].model}, on {', '.join(devices)}; the paper's: SD v1.5 on an A6000.",
        "Step: the mean over users of their median step; memory: the most that was allocated at once, of the user who "
        "took most (on a CPU: by tensors). Ratio: mean over users [smallest, largest]. Users of a CPU may train side "
        "by side, which makes their steps longer. A dash: not measured.",
    ]
    return header, rows, notes


def _paper_costs(metric: str, rho: float) -> list[str]:
    """The printed cost and its ratio to that at rho = 0."""
    printed = {float(row["freeze_ratio"]): row["value"] for row in paper_values() if row["metric"] == metric}
    own = next((value for ratio, value in printed.items() if abs(ratio - rho) < 1e-9), None)
    return ["-", "-"] if own is None else [own, f"{float(own) / float(printed[0.0]):.2f}"]


def write_paper_tables(params: Params, reports: Path, data: Path) -> list[Path]:
    """Those of Tables 1, 5, 6, 7 and 8 for which the profile has cases; returns the Markdown files."""
    rendered: dict[int, tuple[list[str], list[list[str]], list[str]]] = {}
    for table in (1, 5, 6, 7):
        if cases_of(params, table):
            rendered[table] = (component_rows if table == 1 else gathered_rows)(params, table, reports)
    if case := cost_case(params):
        rendered[8] = cost_rows(params, case, data)
    written = []
    for table, (header, rows, notes) in rendered.items():
        embedded = any(params.domain_of(c).source.startswith("embedded-") for c in cases_of(params, table).values())
        about = [f"Profile {params.profile}, seed {params.seed}, mask preset {params.mask.preset}."]
        about += [f"Ours: {OURS[table]}. The two are not on one scale."] if embedded and table in OURS else []
        written.append(write_table(reports / "tables" / f"table{table}", TITLES[table], header, rows, [*about, *notes]))
    return written
