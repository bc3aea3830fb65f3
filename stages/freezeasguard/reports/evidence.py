"""Beside a study's findings: pooled over its cases, against rivals, what chance gives, what more seeds would show."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from freezeasguard.reports.collect import Row, read_cells
from freezeasguard.reports.findings import (
    ENDPOINTS,
    LEVEL,
    Finding,
    corrected,
    findings_of,
    interval_text,
    p_of,
    p_text,
    roles_text,
    rows_by_case,
)
from freezeasguard.reports.rendering import write_table
from freezeasguard.reports.study import Kept, Kind, kept_in
from freezeasguard.sides import SIDES

RIVALS = ("uce", "imma")
"""What others publish: every protection of ours is set beside them, seed by seed."""
WORTH_SEEING = {"score": 0.1, "loss": 0.03}
"""The gap that a study should be able to show, by endpoint."""
POWER = 0.8
MOST_SEEDS = 1000

POOLED_HEADER = [
    "Protection",
    "Cases",
    "n",
    "Gap over random or full FT [95%]",
    "p",
    "n, loss",
    "by loss [95%]",
    "p, loss",
]
POOLED_NOTE = (
    "A value a case and seed, so that cases weigh by their seeds with a signal; Student's, not corrected: for a look, "
    "and no finding."
)


def pooled_rows(findings: Sequence[Finding]) -> list[list[str]]:
    """A line a kind of protection, over all cases."""
    by_label: dict[str, list[Finding]] = defaultdict(list)
    for one in findings:
        by_label[one.label].append(one)
    rows = []
    for label, ones in by_label.items():
        row = [label, str(len(ones))]
        for measure in ENDPOINTS:
            values = [value for one in ones if one.has_signal(measure) for value in one.over(measure).values()]
            row += [str(len(values)), interval_text(values, "+.3f"), p_text(p_of(values))]
        rows.append(row)
    return rows


RIVALS_HEADER = [
    "Case", "Ours", "Rival", "n", "Illegal: keeps less by [95%]", "Legal: keeps more by [95%]",
    "Gap: wider by [95%]", "p (Holm)", "n, loss", "Gap by loss: wider by [95%]", "p (Holm, loss)",
]  # fmt: skip
RIVALS_NOTE = (
    "Seed by seed, {roles}; Holm over all lines of a measure. A rival that stops both sides alike keeps less of the "
    "illegal side at a legal cost: the gap sets one against the other."
)


def rival_rows(findings: Sequence[Finding]) -> list[list[str]]:
    """Every protection of ours minus each rival."""
    pairs = [
        (ours, rival)
        for ours in findings
        for rival in findings
        if ours.kind.arm.kind.ours and rival.kind.arm.method in RIVALS and ours.case == rival.case
    ]
    wider = {name: [_differences(*pair, lambda one, of=name: one.gap(of)) for pair in pairs] for name in ENDPOINTS}
    ps = {measure: corrected([p_of(values) for values in lines]) for measure, lines in wider.items()}
    rows = []
    for index, (ours, rival) in enumerate(pairs):
        sides = [_differences(ours, rival, lambda one, side=side: one.kept["score", side]) for side in SIDES]
        row = [ours.case, ours.label, rival.label, str(len(wider["score"][index]))]
        row += [interval_text([sign * value for value in values]) for sign, values in zip((-1, 1), sides, strict=True)]
        row += [interval_text(wider["score"][index]), p_text(ps["score"][index])]
        row += [str(len(wider["loss"][index])), interval_text(wider["loss"][index]), p_text(ps["loss"][index])]
        rows.append(row)
    return rows


def _differences(ours: Finding, rival: Finding, of: Callable[[Kept], float]) -> list[float]:
    """Of every seed that both have, where both are known."""
    both = [of(one) - of(rival.own[seed]) for seed, one in ours.own.items() if seed in rival.own]
    return [value for value in both if not math.isnan(value)]


POWER_HEADER = ["Case", "Mask", "Measure", "Gap over random: SD over seeds", "Gap worth seeing", "Seeds for 80% power"]
POWER_NOTE = (
    "Student's two-sided test at .05 before any correction, by the spread of the seeds that were run; of few seeds "
    "that spread is itself uncertain."
)


def power_rows(findings: Sequence[Finding]) -> list[list[str]]:
    """How many seeds would show a gap that is worth seeing; a line a mask with a random twin, and measure."""
    rows = []
    for one in findings:
        for measure in ENDPOINTS:
            worth, values = WORTH_SEEING[measure], list(one.over(measure).values())
            if one.blind and len(values) > 1 and (spread := float(np.std(values, ddof=1))):
                needed = repetitions_for(worth / spread)
                shown = str(needed) if needed < MOST_SEEDS else f"over {MOST_SEEDS}"
                rows.append([one.case, one.label, measure, f"{spread:.3f}", f"{worth:g}", shown])
    return rows


def repetitions_for(effect: float, power: float = POWER) -> int:
    """The least n, up to `MOST_SEEDS`, at which Student's two-sided one-sample test shows a mean of `effect` SDs.

    By the noncentral t distribution (Cohen 1988, chapter 2).
    """
    from scipy.stats import nct, t

    n = np.arange(2, MOST_SEEDS + 1)
    limit, shift = t.ppf(1 - LEVEL / 2, n - 1), effect * np.sqrt(n)
    enough = nct.sf(limit, n - 1, shift) + nct.cdf(-limit, n - 1, shift) >= power
    return int(n[np.argmax(enough)]) if enough.any() else MOST_SEEDS


NULL_HEADER = [
    "Case",
    "Random mask",
    "n",
    "Half the difference of two draws' gaps: SD by score",
    "n, loss",
    "SD by loss",
]
NULL_NOTE = (
    "What a blind mask's gap is by the chance of its draw and of its users: a pair of draws a seed and role assignment."
)


def null_rows(cells: Sequence[Row]) -> list[list[str]]:
    """A line a case and kind of random mask that was drawn more than once; the mean difference of two draws is 0."""
    rows = []
    for case, of_case in rows_by_case(cells).items():
        drawn: dict[Kind, dict[tuple[str, str], dict[str, list[Row]]]] = {}
        for row in of_case:
            if row["method"].startswith("random"):
                place = drawn.setdefault(Kind.of(row), {}).setdefault((row["seed"], row["roles"]), {})
                place.setdefault(row["draw"], []).append(row)
        for kind, places in drawn.items():
            pairs = [
                [kept_in(ones, [role]) for _, ones in sorted(draws.items())[:2]]
                for (_, role), draws in places.items()
                if len(draws) > 1
            ]
            row = [case, kind.arm.label(kind.rho)]
            for measure in ENDPOINTS:
                halves = np.array([(a.gap(measure) - b.gap(measure)) / 2 for a, b in pairs])
                halves = halves[~np.isnan(halves)]
                row += [str(len(halves)), f"{math.sqrt(np.mean(halves**2)):.3f}" if len(halves) else "-"]
            if pairs:
                rows.append(row)
    return rows


def write_evidence(cells: Path) -> list[Path]:
    """`pooled`, `rivals`, `chance` and `power` beside the study's other tables; those that have a line."""
    rows = read_cells(cells.read_text(), str(cells))
    findings = findings_of(rows)
    rivals_note = RIVALS_NOTE.format(roles=roles_text(findings))
    tables = (
        ("pooled", "Over all cases", POOLED_HEADER, pooled_rows(findings), POOLED_NOTE),
        ("rivals", "Ours against what others publish", RIVALS_HEADER, rival_rows(findings), rivals_note),
        ("chance", "What a blind mask's gap is by chance", NULL_HEADER, null_rows(rows), NULL_NOTE),
        ("power", "What a larger study would see", POWER_HEADER, power_rows(findings), POWER_NOTE),
    )
    folder = cells.parent / "tables"
    return [
        write_table(folder / name, title, header, lines, [note]) for name, title, header, lines, note in tables if lines
    ]
