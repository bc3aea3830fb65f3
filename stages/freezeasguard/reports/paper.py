"""What the paper prints: its tables' titles and numbers, and which of them stands beside an arm of a case."""

from __future__ import annotations

import csv
import io
from functools import cache
from importlib import resources

from freezeasguard.arms import Arm
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.params import Params

TITLES = {
    1: "Image quality with a component of the model frozen (paper, Table 1)",
    2: "Portraits: image quality after fine-tuning on illegal and legal classes (paper, Table 2)",
    3: "Artworks: image quality after fine-tuning on illegal and legal artists (paper, Table 3)",
    4: "Explicit content: what the illegal user gets, and what the legal one pays (paper, Table 4)",
    5: "Portraits by the number of illegal classes (paper, Table 5)",
    6: "Artworks by the number of illegal artists (paper, Table 6)",
    7: "Portraits by the version of Stable Diffusion (paper, Table 7)",
    8: "What fine-tuning costs by the freeze ratio (paper, Table 8)",
}
OURS = {
    2: "drawn figures and a recogniser trained on other figures; the paper's columns are SD v1.5 on FF25",
    3: "drawings in five illustrators' styles and a style distance on EfficientNet features; the paper's columns are "
    "SD v2.1 on real artists",
    4: "photographs of faces in the place of explicit images, logos as the legal class, the real NudeNet network asked "
    "for its face labels; the paper's columns are SD v1.4 on explicit images and its exposed labels",
}
OURS |= {
    1: "the legal side's images with stand-ins for TOPIQ and FID; the paper's columns are pokemon-blip-captions",
    5: OURS[2],
    6: OURS[3],
    7: OURS[2].replace("SD v1.5", "the same version of SD"),
}
GATHERED: dict[int, int | None] = {1: None, 5: 2, 6: 3, 7: 2, 8: None}
"""The tables that are laid out over cases or costs (`paper_tables`), each with the one whose case it repeats."""


@cache
def paper_values() -> list[dict[str, str]]:
    """Every number of the paper's Tables 1-8 (source: arXiv text of FreezeAsGuard), one row a value."""
    text = (resources.files("freezeasguard.reports") / "paper_values.csv").read_text()
    return list(csv.DictReader(io.StringIO(text)))


def printed_metrics(table: int | None) -> list[str]:
    """The metrics of a table of the paper, in its order."""
    return list(dict.fromkeys(row["metric"] for row in paper_values() if row["table"] == str(table)))


def metric_label(metric: str) -> str:
    return next((score.paper_label for score in SCORES.values() if score.paper_metric == metric), metric.title())


def paper_method(params: Params, case_name: str, arm: Arm, table: int | None) -> str:
    """What the paper calls the arm; its Table 1 knows the methods by what they freeze, and random arms by a seed."""
    if table != 1:
        return arm.paper_method
    halves = [
        one
        for one in params.arms(case_name)
        if one.method in ("random", "random_parameters") and one.granularity == "tensor"
        if abs(one.rho(params.rho) - 0.5) < 1e-9
    ]
    if arm in halves:
        return f"50% random weights (seed {halves.index(arm) + 1})"
    return "No freezing" if arm.name == "full" else arm.paper_method


def paper_value(params: Params, case_name: str, arm: Arm, side: str, metric: str, table: int | None = None) -> str:
    """The printed number, or "" where the paper has none for this arm and freeze ratio.

    Where its table has several models or numbers of illegal classes, the one that is the case's.

    Args:
        table: of the paper; None: the case's own.
    """
    rho, case = arm.rho(params.rho), params.cases[case_name]
    table = table or paper_table(params, case_name)
    method = paper_method(params, case_name, arm, table)
    asked = (str(table), method, metric)
    rows = [
        row
        for row in (paper_values() if method else ())
        if (row["table"], row["method"], row["metric"]) == asked
        and (row["freeze_ratio"] == "" or abs(float(row["freeze_ratio"]) - rho) < 1e-9)
        and row["side"] in (side, "")
    ]
    own = {"model": case.model.rpartition("-")[2], "n_illegal_classes": str(n_classes(case.illegal))}
    for column, wanted in own.items():
        if len({row[column] for row in rows}) > 1:
            rows = [row for row in rows if row[column].rpartition("-")[2] == wanted]
    return rows[0]["value"] if rows else ""


def paper_table(params: Params, case_name: str) -> int | None:
    """The table of the paper beside a case's own; none with the roles swapped, which the paper never does."""
    return params.cases[case_name].table if params.roles == "given" else None


def n_classes(side: int | list[str]) -> int:
    return len(side) if isinstance(side, list) else side
