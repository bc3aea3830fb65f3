"""The paper's tables, ours beside the paper's: scores -> rows -> Markdown, CSV, LaTeX.

The cells are asked for by name, from params.yaml; a missing one is an error, never a blank.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from freezeasguard.config import Params, split_arm
from freezeasguard.data.latents import SIDES
from freezeasguard.files import read_json, write_atomically


@dataclass(frozen=True)
class Column:
    score: str
    """The name in our score files."""
    label: str
    digits: int
    paper_metric: str
    """The metric of the paper that stands beside it."""
    paper_label: str


OWN_COLUMNS = (
    Column("fd_efficientnet_lite0", "FD EfficientNet-lite0 ↓", 1, "", ""),
    Column("clip_tiny", "CLIP (tiny) ↑", 2, "", ""),
)
"""Of a case that is not the paper's."""
COLUMNS = {
    2: (
        Column("recogniser", "Recogniser distance ↓", 3, "fn_l", "FN-L"),
        Column("fd_efficientnet_lite0", "FD EfficientNet-lite0 ↓", 1, "fid", "FID"),
        Column("clip_tiny", "CLIP (tiny) ↑", 2, "", ""),
    )
}
"""What each table shows; arrows point to better image quality, as in the paper."""

OWN_NOTES = (
    "Worse quality on the illegal side is stronger mitigation; on the legal side it is the cost.",
    "FD is a Fréchet distance on EfficientNet-lite0 features, comparable only to itself; the tiny CLIP was trained on "
    "drawings.",
    "[95% interval]: bootstrap over class, prompt and image.",
)
TITLES = {2: "Portraits: image quality after fine-tuning on illegal and legal classes (paper, Table 2)"}
NOTES = {
    2: (
        "Worse quality on the illegal side is stronger mitigation; on the legal side it is the cost.",
        "Ours: drawn figures, a miniature Stable Diffusion, and stand-in scores under their own names; the paper's "
        "columns are SD v1.5 on FF25. The two are not on one scale: compare orders and gaps, not values.",
        "[95% interval]: bootstrap over class, prompt and image.",
        "As printed in the paper: Full FT and R-30% have identical illegal and legal rows.",
        "Paper: the pre-trained model's row is not split by side.",
    )
}


@cache
def paper_values() -> list[dict[str, str]]:
    """Every number of the paper's Tables 1-8 (source: arXiv text of FreezeAsGuard), one row a value."""
    text = (resources.files("freezeasguard") / "paper_values.csv").read_text()
    return list(csv.DictReader(io.StringIO(text)))


def columns_of(table: int | None) -> tuple[Column, ...]:
    return OWN_COLUMNS if table is None else COLUMNS[table]


def table_name(case_name: str, table: int | None) -> str:
    """table2 for the paper's, case-NAME for one's own."""
    return f"case-{case_name}" if table is None else f"table{table}"


def paper_value(table: int | None, arm: str, rho: float, side: str, metric: str) -> str:
    """The printed number, or "" where the paper has none for this arm and freeze ratio."""
    method, _ = split_arm(arm)  # the paper's uce is reading A: uce-b has no number there
    for row in paper_values():
        same_ratio = row["freeze_ratio"] == "" or abs(float(row["freeze_ratio"]) - rho) < 1e-9
        same_side = row["side"] in (side, "")
        if (row["table"], row["method"], row["metric"]) == (str(table), method, metric) and same_ratio and same_side:
            return row["value"]
    return ""


def arm_label(arm: str, rho: float) -> str:
    method, _ = split_arm(arm)
    names = {
        "pretrained": "Pre-trained model",
        "full": "Full FT",
        "uce": "UCE",
        "uce-b": "UCE, reading B",
        "imma": "IMMA",
    }
    short = {"freezeasguard": "FG", "random": "R"}
    if method in short:
        return f"{short[method]}-{100 * rho:g}%"
    return names[arm]


def read_scores(reports: Path, case: str, arm: str) -> dict[str, Any]:
    path = reports / "scores" / case / f"{arm}.json"
    return read_json(path, f"run `dvc repro score@{case}-{arm}`")


def _entry(score: dict[str, Any], digits: int) -> str:
    text = f"{score['value']:.{digits}f} [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"
    return text + (f" ({score['n_missing']} of {score['n']} without a figure)" if score["n_missing"] else "")


def table_rows(params: Params, case_name: str, reports: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows: an arm and a side each, our value with interval, the paper's value."""
    case = params.cases[case_name]
    header = ["Arm", "Side"]
    for column in columns_of(case.table):
        header.append(column.label)
        header += [f"paper: {column.paper_label}"] if column.paper_metric else []
    rows = []
    for arm in params.arms(case_name):
        scores = read_scores(reports, case_name, arm)
        for side in SIDES:
            row = [arm_label(arm, params.arm_rho(arm)), side]
            for column in columns_of(case.table):
                row.append(_entry(scores[side]["all"][column.score], column.digits))
                if column.paper_metric:
                    value = paper_value(case.table, arm, params.arm_rho(arm), side, column.paper_metric)
                    row.append(value or "-")
            rows.append(row)
    return header, rows


def calibration_lines(case_name: str, reports: Path) -> list[str]:
    """What the recogniser reads on real images, side by side with the table."""
    real = read_json(reports / "scores" / case_name / "real.json", f"run `dvc repro reference@{case_name}`")
    if "recogniser" not in real:
        return []
    lines = []
    for side in SIDES:
        line = real["recogniser"][side]
        other = "-" if line["real_vs_other"] is None else f"{line['real_vs_other']:.3f}"
        auc = "-" if line["auc"] is None else f"{line['auc']:.3f}"
        lines.append(
            f"Recogniser distance on real images, {side}: {line['real_vs_real']:.3f} within a class, {other} between "
            f"classes (AUC {auc}, {line['n_missing']} of {line['n']} without a figure)."
        )
    return lines


def verdict_lines(params: Params, case_name: str, reports: Path) -> list[str]:
    """Each frozen arm's rise over full fine-tuning on both sides, ours and the paper's, and whether they agree.

    The paper's claim: freezing costs the illegal side more than the legal one (its section 4.1).
    """
    table = params.cases[case_name].table
    column = columns_of(table)[0]
    full = read_scores(reports, case_name, "full")
    lines = []
    for arm in params.arms(case_name):
        rho = params.arm_rho(arm)
        if rho == 0:
            continue
        scores = read_scores(reports, case_name, arm)
        ours, paper = [], []
        for side in SIDES:
            before = full[side]["all"][column.score]["value"]
            ours.append(100 * (scores[side]["all"][column.score]["value"] / before - 1))
            if not column.paper_metric:
                continue
            printed = [paper_value(table, a, r, side, column.paper_metric) for a, r in (("full", 0.0), (arm, rho))]
            paper += [100 * (float(printed[1]) / float(printed[0]) - 1)] if all(printed) else []
        text = f"{arm_label(arm, rho)} over Full FT: illegal {ours[0]:+.1f}%, legal {ours[1]:+.1f}%"
        if len(paper) == len(SIDES):
            text += f" (paper, {column.paper_label}: {paper[0]:+.1f}%, {paper[1]:+.1f}%)"
        if arm.startswith("freezeasguard"):
            holds = "holds" if ours[0] > ours[1] else "does not hold"
            text += f"; the claim that the illegal side pays more {holds} in this run, by point estimates of one seed"
        lines.append(text + ".")
    return lines


def render_markdown(title: str, header: list[str], rows: list[list[str]], notes: list[str]) -> str:
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    body = [line(header), rule, *(line(row) for row in rows)]
    return "\n".join([f"# {title}", "", *body, "", *(f"- {note}" for note in notes), ""])


def render_csv(header: list[str], rows: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    return buffer.getvalue()


def render_latex(title: str, header: list[str], rows: list[list[str]], notes: list[str]) -> str:
    def escape(text: str) -> str:
        for old, new in (("%", r"\%"), ("_", r"\_"), ("↓", r"$\downarrow$"), ("↑", r"$\uparrow$")):
            text = text.replace(old, new)
        return text

    lines = [" & ".join(escape(cell) for cell in row) + r" \\" for row in (header, *rows)]
    body = [lines[0], r"\midrule", *lines[1:]]
    spec = "ll" + "r" * (len(header) - 2)
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escape(title)}. {escape(' '.join(notes))}}}",
            rf"\begin{{tabular}}{{{spec}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def n_classes(side: int | list[str]) -> int:
    return len(side) if isinstance(side, list) else side


def write_tables(params: Params, reports: Path) -> list[Path]:
    """Write every case's table as .md, .csv and .tex; returns the Markdown files."""
    written = []
    for case_name, case in params.cases.items():
        header, rows = table_rows(params, case_name, reports)
        setting = (
            f"Profile {params.profile}, seed {params.seed}: {n_classes(case.illegal)} illegal and "
            f"{n_classes(case.legal)} legal classes, mask preset {params.mask.preset}."
        )
        verdict = verdict_lines(params, case_name, reports)
        notes = [
            setting,
            *verdict,
            *calibration_lines(case_name, reports),
            *(NOTES[case.table] if case.table else OWN_NOTES),
        ]
        title = TITLES[case.table] if case.table else f"Case {case_name}: image quality after fine-tuning"
        renders = {
            "md": render_markdown(title, header, rows, notes),
            "csv": render_csv(header, rows),
            "tex": render_latex(title, header, rows, notes),
        }
        for suffix, text in renders.items():
            with write_atomically(reports / "tables" / f"{table_name(case_name, case.table)}.{suffix}") as temporary:
                temporary.write_text(text)
        written.append(reports / "tables" / f"{table_name(case_name, case.table)}.md")
    return written
