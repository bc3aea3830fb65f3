"""What a study found: one line a case and protection, with a verdict that its intervals give and nobody writes.

The primary endpoint, fixed before any run, is the gap (kept legal - kept illegal) by the score that speaks for a side,
at a legal cost (1 - kept legal) of at most 5%. A mask's gap counts above that of a random mask of its kind and ratio,
seed by seed; another protection's above full fine-tuning's, which is 0. A repetition is a seed, which draws the
classes, averaged over both role assignments: in such a balanced design Student's test over the repetitions' means is
the mixed model's, with class pair and seed as random effects. Holm's correction runs over all lines of the study.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_atomically
from freezeasguard.reports.collect import Row, read_cells
from freezeasguard.reports.rendering import write_table
from freezeasguard.reports.study import Kept, Kind, kept_by_seed, share_text, student_interval
from freezeasguard.scores.comparisons import holm
from freezeasguard.sides import SIDES

MOST_LEGAL_COST = 0.05
LEVEL = 0.05
HEADER = [
    "Case", "Protection", "n", "Kept, illegal", "Kept, legal", "Gap", "Gap over random or full FT [95%]", "p (Holm)",
    "By loss: kept", "gap over random or full FT [95%]", "Finding",
]  # fmt: skip
BLOCK = re.compile(r"(<!-- findings: [^>]*-->\n).*?(<!-- end of the findings -->)", re.DOTALL)


@dataclass(frozen=True)
class Finding:
    """A protection in one case, against its blind twin where it has one."""

    case: str
    kind: Kind
    own: Sequence[Kept]
    """A repetition each, and in the same order `blind`."""
    blind: Sequence[Kept] | None

    @property
    def label(self) -> str:
        return self.kind.arm.label(self.kind.rho)

    def kept(self, measure: str, side: str) -> float:
        return float(np.mean([one.kept[measure, side] for one in self.own]))

    def over(self, measure: str) -> list[float]:
        """The gap above the blind twin's, or above full fine-tuning's 0; a value a repetition."""
        blind = [one.gap(measure) for one in self.blind] if self.blind else [0.0] * len(self.own)
        return [one.gap(measure) - other for one, other in zip(self.own, blind, strict=True)]

    @property
    def p(self) -> float:
        """Student's test, two-sided, of the primary endpoint; nan where a repetition lacks it, or there is one."""
        from scipy.stats import ttest_1samp

        values = self.over("score")
        return float(ttest_1samp(values, 0).pvalue) if len(values) > 1 else math.nan

    def verdict(self, corrected: float) -> str:
        """Of the primary endpoint."""
        gap, cost = float(np.mean(self.over("score"))), 1 - self.kept("score", "legal")
        if math.isnan(gap):
            return "no signal: full fine-tuning hardly betters a side's score"
        if math.isnan(corrected):
            return "one repetition: nothing to test"
        if corrected >= LEVEL:
            return "not shown"
        if gap < 0:
            return "spares the illegal side"
        return "protects" if cost <= MOST_LEGAL_COST else f"parts the sides, at a legal cost of {cost:.0%}"


def findings_of(cells: Sequence[Row]) -> list[Finding]:
    """Of all cases, in the order of the cells; random masks are what others are measured by."""
    by_case: dict[str, list[Row]] = defaultdict(list)
    for row in cells:
        by_case[row["case"]].append(row)
    found = []
    for case, rows in by_case.items():
        kinds = kept_by_seed(rows)
        for kind, ones in kinds.items():
            if kind.arm.method.startswith("random"):
                continue
            blind = _blind_twin(kind, kinds)
            seeds = [seed for seed in ones if blind is None or seed in blind]
            if seeds:
                beside = blind and [blind[seed] for seed in seeds]
                found.append(Finding(case, kind, [ones[seed] for seed in seeds], beside))
    return found


def _blind_twin(kind: Kind, kinds: Mapping[Kind, dict[str, Kept]]) -> dict[str, Kept] | None:
    """The random mask of its granularity and ratio; None for what is no mask, and where the study has none."""
    if not kind.arm.kind.freezes:
        return None
    twin = kind.arm.random_twin
    return next((ones for other, ones in kinds.items() if (other.arm, other.rho) == (twin, kind.rho)), None)


def _interval(values: Sequence[float]) -> str:
    mean, low, high = student_interval(values)
    reach = f" [{low:+.2f}, {high:+.2f}]" if math.isfinite(low) and not math.isnan(mean) else ""
    return share_text(mean, "+.2f") + reach


def _corrected(findings: Sequence[Finding]) -> list[float]:
    """Holm's p of each; nan where there is none."""
    raw = [one.p for one in findings]
    corrected = iter(holm([p for p in raw if not math.isnan(p)]))
    return [p if math.isnan(p) else next(corrected) for p in raw]


def finding_rows(findings: Sequence[Finding]) -> list[list[str]]:
    rows = []
    for one, p in zip(findings, _corrected(findings), strict=True):
        kept = {measure: [share_text(one.kept(measure, side)) for side in SIDES] for measure in ("score", "loss")}
        gap = float(np.mean([own.gap("score") for own in one.own]))
        rows.append(
            [
                one.case,
                one.label,
                str(len(one.own)),
                *kept["score"],
                share_text(gap, "+.2f"),
                _interval(one.over("score")),
                "-" if math.isnan(p) else f"{p:.3f}",
                " / ".join(kept["loss"]),
                _interval(one.over("loss")),
                one.verdict(p),
            ]  # fmt: skip
        )
    return rows


def finding_notes(findings: Sequence[Finding]) -> list[str]:
    alone = [f"{one.case}, {one.label}" for one in findings if one.kind.arm.kind.freezes and not one.blind]
    return [
        "Kept: 1 is what full fine-tuning changes, 0 the pretrained model; of the score that speaks for the side. Gap: "
        "kept legal - kept illegal.",
        "Primary endpoint, fixed beforehand: the gap by score above a random mask's (above 0 for what is no mask), at "
        f"a legal cost of at most {MOST_LEGAL_COST:.0%}; p by Student's test over n seeds, each with its own classes "
        "and averaged over both role assignments, corrected by Holm over all lines.",
        *([f"No random twin in the study, so against full fine-tuning: {'; '.join(alone)}."] if alone else []),
    ]


def write_findings(cells: Path, readme: Path | None = None) -> Path:
    """`tables/findings.md` (.csv, .tex) beside the study's other tables, and the README's block of the same table."""
    findings = findings_of(read_cells(cells.read_text(), str(cells)))
    if not findings:
        raise FreezeAsGuardError(f"{cells} holds no protection beside full fine-tuning; run the profile study")
    path, title = cells.parent / "tables" / "findings", "What the study found"
    written = write_table(path, title, HEADER, finding_rows(findings), finding_notes(findings))
    if readme:
        _, _, below_the_title = written.read_text().partition("\n\n")
        write_block(readme, below_the_title)
    return written


def write_block(readme: Path, text: str) -> None:
    """Put `text` in the place of what stands between the README's two marks."""
    before = readme.read_text()
    if not BLOCK.search(before):
        raise FreezeAsGuardError(f"{readme} has no lines `<!-- findings: ... -->` and `<!-- end of the findings -->`")
    with write_atomically(readme) as temporary:
        temporary.write_text(BLOCK.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", before))
