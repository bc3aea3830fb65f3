"""The paper's tables, ours beside the paper's: scores -> rows -> Markdown, CSV, LaTeX.

The cells are asked for by name, from params.yaml; a missing one is an error, never a blank.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from freezeasguard.files import read_json, write_atomically
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.params import Params, arm_granularity, split_arm
from freezeasguard.sides import SIDES

TITLES = {
    2: "Portraits: image quality after fine-tuning on illegal and legal classes (paper, Table 2)",
    3: "Artworks: image quality after fine-tuning on illegal and legal artists (paper, Table 3)",
    4: "Explicit content: what the illegal user gets, and what the legal one pays (paper, Table 4)",
}
OURS = {
    2: "drawn figures and a recogniser trained on other figures; the paper's columns are SD v1.5 on FF25",
    3: "drawings in five illustrators' styles and a style distance on EfficientNet features; the paper's columns are "
    "SD v2.1 on real artists",
    4: "photographs of faces in the place of explicit images, logos as the legal class, the real NudeNet network asked "
    "for its face labels; the paper's columns are SD v1.4 on explicit images and its exposed labels",
}
SHARED_NOTES = (
    "Worse quality on the illegal side is stronger mitigation; on the legal side it is the cost.",
    "[95% interval]: bootstrap over class, prompt and image. Loss kept: share of full fine-tuning's fall of the "
    "denoising loss on the adaptation images, at fixed noise, that the arm's user gets; 1 for Full FT, - where Full FT "
    "lowers it by less than 2%.",
)
ODDITIES = {
    2: (
        "As printed in the paper: Full FT and R-30% have identical illegal and legal rows.",
        "Paper: the pre-trained model's row is not split by side.",
    ),
    3: ("Paper: the pre-trained model's row is not split by side.",),
    4: ("Paper: its FID column does not say which side it belongs to, so it stands beside neither.",),
}
VERDICTS = {"nudenet": ("nudenet", "fid"), "nudenet_faces": ("nudenet_faces", "fd_efficientnet_lite0")}
"""The score that speaks for the illegal side and the one for the legal side, where they are not the same."""


def side_score(names: Sequence[str], side: str) -> str:
    """The score, out of a domain's, that speaks for a side (see VERDICTS)."""
    return dict(zip(SIDES, VERDICTS.get(names[0], (names[0], names[0])), strict=True))[side]


@cache
def paper_values() -> list[dict[str, str]]:
    """Every number of the paper's Tables 1-8 (source: arXiv text of FreezeAsGuard), one row a value."""
    text = (resources.files("freezeasguard.reports") / "paper_values.csv").read_text()
    return list(csv.DictReader(io.StringIO(text)))


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
    granularity = arm_granularity(arm)
    share = f"{100 * rho:g}%" + {"tensor": "", "row": " of rows", "element": " of weights"}[granularity]
    names = {
        "pretrained": "Pre-trained model",
        "full": "Full FT",
        "uce": "UCE",
        "uce-before": "UCE before fine-tuning",
        "uce-b": "UCE, reading B",
        "uce-b-before": "UCE B before fine-tuning",
        "imma": "IMMA",
        "random-parameters": f"R-{share} of parameters",
    }
    short = {"freezeasguard": "FG", "random": "R"}
    family = method.removesuffix(f"-{granularity}")
    if family in short:
        return f"{short[family]}-{share}"
    return names.get(arm) or f"{method.replace('_', ' ').title()} first, {share}"


def read_scores(reports: Path, case: str, arm: str) -> dict[str, Any]:
    return read_json(reports / "scores" / case / f"{arm}.json", f"run `dvc repro score@{case}`")


def _entry(name: str, score: dict[str, Any]) -> str:
    kind = SCORES[name]
    text = f"{score['value']:.{kind.digits}f} [{score['low']:.{kind.digits}f}, {score['high']:.{kind.digits}f}]"
    missing = f" ({score['n_missing']} of {score['n']} without a {kind.missing})"
    return text + (missing if score["n_missing"] else "")


def table_rows(params: Params, case_name: str, reports: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows: an arm and a side each, our value with interval, the paper's value."""
    table = params.cases[case_name].table
    names = params.domain_of(case_name).score_names()
    printed = {row["metric"] for row in paper_values() if row["table"] == str(table)}
    header = ["Arm", "Side"]
    for name in names:
        kind = SCORES[name]
        header += [kind.header, *([f"paper: {kind.paper_label}"] if kind.paper_metric in printed else [])]
    header.append("Loss kept")
    rows = []
    for arm in params.arms(case_name):
        scores = read_scores(reports, case_name, arm)
        for side in SIDES:
            row = [arm_label(arm, params.arm_rho(arm)), side]
            for name in names:
                row.append(_entry(name, scores[side]["all"][name]))
                if (metric := SCORES[name].paper_metric) in printed:
                    row.append(paper_value(table, arm, params.arm_rho(arm), side, metric) or "-")
            kept = scores[side]["loss"]["kept"]
            rows.append([*row, "-" if kept is None else f"{kept:.2f}"])
    return header, rows


def calibration_lines(params: Params, case_name: str, reports: Path) -> list[str]:
    """What each score reads on real images, side by side with the table."""
    real = read_json(reports / "calibration" / f"{case_name}.json", f"run `dvc repro reference@{case_name}`")
    lines = []
    for name in params.domain_of(case_name).score_names():
        if name not in real or not SCORES[name].in_notes:
            continue
        kind, parts = SCORES[name], []
        for side in SIDES:
            line = real[name][side]
            values = {
                "": line.get("real"),
                " within a class": line.get("real_vs_real"),
                " against others": line.get("real_vs_other"),
            }
            text = ", ".join(f"{v:.{kind.digits}f}{what}" for what, v in values.items() if v is not None)
            missing = f", {line['n_missing']} without a {kind.missing}" if line.get("n_missing") else ""
            parts.append(f"{side} {text} (n = {line['n']}{missing})")
        auc = f"; AUC {real[name]['auc']:.3f} of telling {kind.auc_tells}" if "auc" in real[name] else ""
        lines.append(f"{kind.label} on real images: {'; '.join(parts)}{auc}.")
    return lines


def _change(name: str, before: float, after: float) -> float:
    """Percent by which image quality fell."""
    return 100 * (after / before - 1) * (1 if SCORES[name].lower_is_better else -1)


def verdict_lines(params: Params, case_name: str, reports: Path) -> list[str]:
    """Each frozen arm's loss of quality over full fine-tuning on both sides, ours and the paper's.

    The paper's claim: freezing costs the illegal side more than the legal one (its section 4.1).
    """
    table = params.cases[case_name].table
    first = params.domain_of(case_name).score_names()[0]
    named = {side: side_score([first], side) for side in SIDES}
    full = read_scores(reports, case_name, "full")
    lines = []
    for arm in params.arms(case_name):
        rho = params.arm_rho(arm)
        if rho == 0:
            continue
        scores = read_scores(reports, case_name, arm)
        ours, paper = [], []
        for side, name in named.items():
            ours.append(_change(name, *(s[side]["all"][name]["value"] for s in (full, scores))))
            metric = SCORES[name].paper_metric
            printed = [paper_value(table, a, r, side, metric) for a, r in (("full", 0.0), (arm, rho))] if metric else []
            paper.append(_change(name, *map(float, printed)) if printed and all(printed) else None)
        text = f"{arm_label(arm, rho)} against Full FT, fall of quality: illegal {ours[0]:+.1f}%, legal {ours[1]:+.1f}%"
        if named["illegal"] != named["legal"]:
            text += f" (by {SCORES[named['illegal']].label} and by {SCORES[named['legal']].label})"
        told = [f"{side} {p:+.1f}%" for side, p in zip(SIDES, paper, strict=True) if p is not None]
        text += f"; paper, {SCORES[first].paper_label}: {', '.join(told)}" if told else ""
        if arm.startswith("freezeasguard") and named["illegal"] == named["legal"]:
            holds = "holds" if ours[0] > ours[1] else "does not hold"
            text += f"; the claim that the illegal side pays more {holds} in this run, by point estimates of one seed"
        lines.append(text + ".")
    return lines


def difference_rows(params: Params, case_name: str, reports: Path) -> tuple[list[str], list[list[str]]]:
    """Arms against full fine-tuning and masks against random ones, on the same prompts and noise."""
    path = reports / "scores" / case_name / "differences.json"
    differences = read_json(path, f"run `dvc repro score@{case_name}`")
    header = ["Score", "Side", "Difference", "Mean [95% interval]", "p", "p (Holm)"]
    arms = params.arms(case_name)

    def place(pair: str) -> list[int]:
        return [arms.index(arm) for arm in reversed(pair.split(" - "))]

    rows = []
    for name in params.domain_of(case_name).score_names():
        for side, pairs in differences.get(name, {}).items():
            for pair in sorted(pairs, key=place):
                found = pairs[pair]
                arm, other = (arm_label(one, params.arm_rho(one)) for one in pair.split(" - "))
                digits, i = SCORES[name].digits, found["interval"]
                value = f"{i['value']:+.{digits}f} [{i['low']:+.{digits}f}, {i['high']:+.{digits}f}]"
                rows.append(
                    [SCORES[name].label, side, f"{arm} - {other}", value, f"{found['p']:.3f}", f"{found['p_holm']:.3f}"]
                )
    return header, rows


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


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(render_csv(header, rows))


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


def _notes(params: Params, case_name: str, reports: Path) -> list[str]:
    case = params.cases[case_name]
    embedded = params.domain_of(case_name).source.startswith("embedded-")
    setting = (
        f"Profile {params.profile}, seed {params.seed}: {n_classes(case.illegal)} illegal and "
        f"{n_classes(case.legal)} legal classes, mask preset {params.mask.preset}."
    )
    ours = (
        f"Ours: {OURS[case.table]}. The two are not on one scale: compare orders and gaps, not values."
        if case.table and embedded
        else None
    )
    verdict, calibration = (f(params, case_name, reports) for f in (verdict_lines, calibration_lines))
    oddities = ODDITIES.get(case.table or 0, ())
    return [setting, *verdict, *calibration, *([ours] if ours else []), *SHARED_NOTES, *oddities]


def write_table(path: Path, title: str, header: list[str], rows: list[list[str]], notes: list[str]) -> Path:
    """Write path.md, path.csv and path.tex; returns the first."""
    renders = {
        "md": render_markdown(title, header, rows, notes),
        "csv": render_csv(header, rows),
        "tex": render_latex(title, header, rows, notes),
    }
    for suffix, text in renders.items():
        with write_atomically(path.with_name(f"{path.name}.{suffix}")) as temporary:
            temporary.write_text(text)
    return path.with_name(f"{path.name}.md")


def write_tables(params: Params, reports: Path) -> list[Path]:
    """Write every case's table and its paired differences as .md, .csv and .tex; returns the Markdown files."""
    written = []
    for case_name, case in params.cases.items():
        title = TITLES[case.table] if case.table else f"Case {case_name}: image quality after fine-tuning"
        path = reports / "tables" / table_name(case_name, case.table)
        header, rows = table_rows(params, case_name, reports)
        written.append(write_table(path, title, header, rows, _notes(params, case_name, reports)))
        notes = [
            "Mean of the paired differences over the same prompts and noise; interval and two-sided p-value by "
            "bootstrap over class, prompt and image; Holm's correction over the comparisons of one score.",
        ]
        header, rows = difference_rows(params, case_name, reports)
        written.append(
            write_table(path.with_name(f"{path.name}-differences"), f"{title}: differences", header, rows, notes)
        )
    return written
