"""The paper's tables, ours beside the paper's: scores -> rows -> Markdown, CSV, LaTeX.

The cells are asked for by name, from params.yaml; a missing one is an error, never a blank.
"""

from __future__ import annotations

from pathlib import Path

from freezeasguard.arms import PRETRAINED, Arm
from freezeasguard.reading import read_json
from freezeasguard.reports.claims import write_claims
from freezeasguard.reports.kept import kept_text, write_kept
from freezeasguard.reports.masks import write_mask_report
from freezeasguard.reports.measures import CaseScores, fall_of_quality, percent, read_scores, score_entry
from freezeasguard.reports.paired import Images, no_signal
from freezeasguard.reports.paper import (
    GATHERED,
    OURS,
    TITLES,
    metric_label,
    n_classes,
    paper_table,
    paper_value,
    printed_metrics,
)
from freezeasguard.reports.paper_tables import write_paper_tables
from freezeasguard.reports.rendering import write_table
from freezeasguard.reports.summary import write_summary
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.mask import PRESET_WORDS
from freezeasguard.settings.params import Params
from freezeasguard.sides import SIDES

LEAST_AUC = 0.7
"""Below it a score tells the classes of real images apart too seldom to say anything of generated ones."""
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


def table_name(params: Params, case_name: str) -> str:
    """case-NAME for one's own; tableN for the paper's, and tableN-NAME where it gathers cases, or several have it."""
    table = params.cases[case_name].table
    if table is None:
        return f"case-{case_name}"
    alone = table not in GATHERED and sum(case.table == table for case in params.cases.values()) == 1
    return f"table{table}" if alone else f"table{table}-{case_name}"


def table_rows(params: Params, case_name: str, reports: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows: an arm and a side each, our value with interval, the paper's value.

    Where a score of ours stands beside one of the paper's, what else the paper prints keeps its column; nobody has
    rated our images.
    """
    names = params.domain_of(case_name).score_names()
    printed = printed_metrics(paper_table(params, case_name))
    scored = {SCORES[name].paper_metric for name in names}
    unscored = [metric for metric in printed if metric not in scored] if scored.intersection(printed) else []
    header = ["Arm", "Side"]
    for name in names:
        kind = SCORES[name]
        header += [kind.header, *([f"paper: {kind.paper_label}"] if kind.paper_metric in printed else [])]
    header += [f"paper: {metric_label(metric)}" for metric in unscored if metric != "human"]
    header += ["Human ↑", "paper: Human"] if "human" in unscored else []
    header.append("Loss kept")
    rows = []
    for arm in params.arms(case_name):
        scores = read_scores(reports, case_name, arm.name)
        for side in SIDES:
            row = [arm.label(params.rho), side]
            for name in names:
                row.append(score_entry(name, scores[side]["all"][name]))
                if (metric := SCORES[name].paper_metric) in printed:
                    row.append(paper_value(params, case_name, arm, side, metric) or "-")
            for metric in unscored:
                row += ["-"] if metric == "human" else []
                row.append(paper_value(params, case_name, arm, side, metric) or "-")
            rows.append([*row, kept_text(scores[side]["loss"]["kept"])])
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
        auc = real[name].get("auc")
        told = "" if auc is None else f"; AUC {auc:.3f} of telling {kind.auc_tells}"
        if auc is not None and auc < LEAST_AUC:
            told += f". WARNING: it hardly tells {kind.auc_tells} (below {LEAST_AUC:g}): its column says nothing"
        lines.append(f"{kind.label} on real images: {'; '.join(parts)}{told}.")
    return lines


def verdict_lines(params: Params, case_name: str, reports: Path, data: Path) -> list[str]:
    """Each frozen arm's loss of quality over full fine-tuning on both sides, ours and the paper's: point estimates.

    What the paper claims of them is judged by intervals, in the table of claims. A side on which full fine-tuning does
    not better the score has none.
    """
    case = CaseScores(params, case_name, reports)
    named = {side: case.speaks_for(side) for side in SIDES}
    images = Images(params, case_name, data)
    silent = {side: why for side in SIDES if (why := no_signal(case, side, images))}
    lines = []
    for arm in params.arms(case_name):
        if arm.rho(params.rho) == 0:
            continue
        ours = [case.fall(arm, side) for side in SIDES]
        paper = []
        for side, name in named.items():
            metric, ends = SCORES[name].paper_metric, (Arm("full"), arm)
            printed = [paper_value(params, case_name, end, side, metric) for end in ends] if metric else []
            paper.append(fall_of_quality(name, *map(float, printed)) if printed and all(printed) else None)
        text = f"{arm.label(params.rho)} against Full FT, fall of quality: "
        text += ", ".join(
            f"{side} {'no signal' if side in silent else percent(fall)}" for side, fall in zip(SIDES, ours, strict=True)
        )
        if named["illegal"] != named["legal"]:
            text += f" (by {SCORES[named['illegal']].label} and by {SCORES[named['legal']].label})"
        told = [f"{side} {p:+.1f}%" for side, p in zip(SIDES, paper, strict=True) if p is not None]
        text += f"; paper, {SCORES[case.names[0]].paper_label}: {', '.join(told)}" if told else ""
        lines.append(text + ".")
    return [*lines, *(f"By {SCORES[named[side]].label}, {side} side: {why}." for side, why in silent.items())]


def published_lines(params: Params, case_name: str, reports: Path) -> list[str]:
    """What a protection that edits gives and takes before anybody trains: its users' shares stand on that."""
    lines = []
    for arm in (arm for arm in params.arms(case_name) if arm.before and arm.name != PRETRAINED):
        scores = read_scores(reports, case_name, arm.name)
        kept = ", ".join(f"{side} {kept_text(scores[side]['loss']['kept'])}" for side in SIDES)
        lines.append(
            f"{arm.label(params.rho)}: loss kept {kept}. So much of what full fine-tuning learns is published already; "
            "below 0 is taken from the published model itself."
        )
    return lines


def drift_lines(params: Params, case_name: str, data: Path) -> list[str]:
    """What a protection that tells its `neutral_losses` changes where nobody asked it to."""
    lines = []
    for arm in (arm for arm in params.arms(case_name) if not arm.before):
        path = data / "protected" / case_name / arm.name / "protected.json"
        told = read_json(path, f"run `dvc repro protect@{case_name}-{arm.name}`")["diagnostics"]
        if "neutral_losses" not in told:
            continue
        before, after = (told["neutral_losses"][name] for name in ("pretrained", "anchored"))
        lines.append(
            f"{arm.label(params.rho)}, as published: the loss on the pretrained model's own images of neutral prompts, "
            f"from which nothing was learned, changes by {100 * (after / before - 1):+.1f}%."
        )
    return lines


def difference_rows(params: Params, case_name: str, reports: Path) -> tuple[list[str], list[list[str]]]:
    """Arms against full fine-tuning and masks against random ones, on the same prompts and noise."""
    path = reports / "scores" / case_name / "differences.json"
    differences = read_json(path, f"run `dvc repro score@{case_name}`")
    header = ["Score", "Side", "Difference", "Mean [95% interval]", "p", "p (Holm)"]
    arms = [arm.name for arm in params.arms(case_name)]

    def place(pair: str) -> list[int]:
        return [arms.index(arm) for arm in reversed(pair.split(" - "))]

    rows = []
    for name in params.domain_of(case_name).score_names():
        for side, pairs in differences.get(name, {}).items():
            for pair in sorted(pairs, key=place):
                found = pairs[pair]
                arm, other = (Arm.parse(one).label(params.rho) for one in pair.split(" - "))
                digits, i = SCORES[name].digits, found["interval"]
                value = f"{i['value']:+.{digits}f} [{i['low']:+.{digits}f}, {i['high']:+.{digits}f}]"
                rows.append(
                    [SCORES[name].label, side, f"{arm} - {other}", value, f"{found['p']:.3f}", f"{found['p_holm']:.3f}"]
                )
    return header, rows


def _notes(params: Params, case_name: str, reports: Path, data: Path) -> list[str]:
    case = params.cases[case_name]
    embedded = params.domain_of(case_name).source.startswith("embedded-")
    named = (case.illegal, case.legal) if params.roles == "given" else (case.legal, case.illegal)
    illegal, legal = map(n_classes, named)
    swapped = "" if params.roles == "given" else ", roles swapped: the classes named illegal are the legal ones"
    setting = (
        f"Profile {params.profile}, seed {params.seed}: {illegal} illegal and {legal} legal classes, "
        f"mask preset {params.mask.preset} ({PRESET_WORDS[params.mask.preset]}){swapped}."
    )
    table = paper_table(params, case_name)
    ours = (
        f"Ours: {OURS[table]}. The two are not on one scale: compare orders and gaps, not values."
        if table in OURS and embedded
        else None
    )
    verdict = verdict_lines(params, case_name, reports, data)
    calibration = calibration_lines(params, case_name, reports)
    oddities = ODDITIES.get(table or 0, ())
    drift = [*published_lines(params, case_name, reports), *drift_lines(params, case_name, data)]
    return [setting, *verdict, *drift, *calibration, *([ours] if ours else []), *SHARED_NOTES, *oddities]


def write_tables(params: Params, reports: Path, data: Path) -> list[Path]:
    """Every case's table and paired differences, the paper's gathered tables, the masks' diagnostics, and the summary.

    Tables are .md, .csv and .tex; returns the Markdown files.
    """
    written = []
    for case_name, case in params.cases.items():
        path = reports / "tables" / table_name(params, case_name)
        title = TITLES.get(case.table or 0, f"Case {case_name}: image quality after fine-tuning")
        title += f"; case {case_name}" if path.name.startswith(f"table{case.table}-") else ""
        header, rows = table_rows(params, case_name, reports)
        written.append(write_table(path, title, header, rows, _notes(params, case_name, reports, data)))
        notes = [
            "Mean of the paired differences over the same prompts and noise; interval and two-sided p-value by "
            "bootstrap over class, prompt and image; Holm's correction over the comparisons of one score.",
            "Conditional on one run: one draw of classes, masks and users. `freezeasguard collect` tests over seeds.",
        ]
        header, rows = difference_rows(params, case_name, reports)
        written.append(
            write_table(path.with_name(f"{path.name}-differences"), f"{title}: differences", header, rows, notes)
        )
    written += [*write_paper_tables(params, reports, data), write_claims(params, reports, data)]
    written.append(write_kept(params, reports))
    write_summary(params, reports, data)
    return [*written, *write_mask_report(params, data, reports)]
