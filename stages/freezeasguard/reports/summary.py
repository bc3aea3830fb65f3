"""The two small files that experiments are compared by: the headline metrics, and a row a case, arm and side.

`reports/metrics.json` is the one DVC metrics file; `reports/cells.csv` is what `collect` gathers from every experiment.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from freezeasguard.arms import Arm
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import fingerprint, write_atomically, write_json
from freezeasguard.models.protected_file import read_protected_file
from freezeasguard.reports.measures import CaseScores
from freezeasguard.settings.params import Params
from freezeasguard.sides import SIDES

METRICS, CELLS = "metrics.json", "cells.csv"
COLUMNS = (
    "profile", "seed", "roles", "rho", "preset", "illegal_weight", "settings",
    "case", "arm", "method", "granularity", "arm_rho", "draw", "side", "classes",
    "loss", "kept_loss", "score_name", "score", "low", "high", "kept_score", "share_of_parameters_frozen",
    "mask_bytes", "n",
)  # fmt: skip
"""Of `cells.csv`. `score` speaks for the side; `n` images it rests on; `settings` stands for everything else that the
cell was made with, so that experiments which differ in more than seed, roles and mask never pass for one."""


def short(value: float, digits: int = 4) -> float:
    """Rounded to so many significant digits."""
    return float(f"{value:.{digits}g}")


def arm_metrics(scores: CaseScores, arm: Arm) -> dict[str, float]:
    """Both sides' scores; but for full fine-tuning, the loss kept; and where the arm freezes, its gap."""
    found: dict[str, float | None] = {side: scores.score(arm, side)["value"] for side in SIDES}
    if arm.method != "full":
        found |= {f"kept_{side}": scores.kept_loss(arm, side) for side in SIDES}
    if arm.kind.freezes and not math.isnan(gap := scores.gap(arm)):
        found["gap"] = gap
    return {key: short(value) for key, value in found.items() if value is not None}


def headline_metrics(params: Params, reports: Path) -> dict[str, dict[str, dict[str, float]]]:
    """case -> headline arm -> number by name."""
    cases = {case: CaseScores(params, case, reports) for case in params.cases}
    return {
        case: {arm.name: arm_metrics(scores, arm) for arm in params.arms(case) if arm.headline}
        for case, scores in cases.items()
    }


def classes_of(latents: Path) -> dict[str, str]:
    """side -> its classes, joined by spaces, as `encode` dealt them."""
    path = latents / "index.csv"
    if not path.is_file():
        raise FreezeAsGuardError(f"{path} is missing; run `dvc repro encode`")
    with path.open(newline="") as file:
        found = {(row["side"], row["class"]) for row in csv.DictReader(file)}
    return {side: " ".join(sorted(name for of, name in found if of == side)) for side in SIDES}


def cell_settings(params: Params, case: str, arm: Arm) -> dict[str, Any]:
    """What a cell is made with beside its case, seed, roles and freeze ratio; another arm changes nothing in it."""
    blocks: dict[str, Any] = {
        "case": params.cases[case].model_dump(exclude={"arms"}),
        "adapt": params.adapt_block(case, arm).model_dump(),
        "generate": params.generate.model_dump(),
    }
    if arm.kind.block == "mask":
        blocks["mask"] = params.mask_block(case, arm).model_dump(exclude={"of_profile"})
        blocks["relearn"] = params.relearn.model_dump()
    elif arm.kind.block in ("uce", "imma"):
        blocks[arm.kind.block] = getattr(params, arm.kind.block).model_dump()
    elif arm.kind.block:
        blocks[arm.kind.block] = params.methods.get(arm.kind.block, {})
    return blocks


def _other_settings(params: Params, case: str, arm: Arm) -> str:
    """A short hash of what no other column says."""
    blocks = cell_settings(params, case, arm)
    columns = ("preset", "illegal_weight", "granularity", "diagnostic_seeds")
    blocks["mask"] = {key: value for key, value in blocks.get("mask", {}).items() if key not in columns}
    model = params.models[params.cases[case].model].model_dump(mode="json")
    return fingerprint(blocks, params.domain_of(case).model_dump(mode="json"), model)[:8]


def cell_rows(params: Params, reports: Path, data: Path) -> Iterator[dict[str, Any]]:
    """A row a case, arm and side, in the order of the tables."""
    for case in params.cases:
        scores, classes = CaseScores(params, case, reports), classes_of(data / "latents" / case)
        for arm in params.arms(case):
            sizes = read_protected_file(data / "protected" / case / arm.protected.name).get("diagnostics", {})
            mask = params.mask_block(case, arm) if arm.kind.block == "mask" else None
            for side in SIDES:
                score, loss = scores.score(arm, side), scores.by_arm[arm.name][side]["loss"]
                yield {
                    "profile": params.profile,
                    "seed": params.seed,
                    "roles": params.roles,
                    "rho": params.rho,
                    "preset": (mask or params.mask).preset,
                    "illegal_weight": mask.illegal_weight if mask else None,
                    "settings": _other_settings(params, case, arm),
                    "case": case,
                    "arm": arm.name,
                    "method": arm.method,
                    "granularity": arm.granularity,
                    "arm_rho": arm.rho(params.rho),
                    "draw": arm.draw,
                    "side": side,
                    "classes": classes[side],
                    "loss": loss["fixed_noise"],
                    "kept_loss": loss["kept"],
                    "score_name": scores.speaks_for(side),
                    "score": score["value"],
                    "low": score["low"],
                    "high": score["high"],
                    "kept_score": scores.kept_score(arm, side),
                    "share_of_parameters_frozen": sizes.get("share_of_parameters_frozen"),
                    "mask_bytes": sizes.get("mask_bytes"),
                    "n": score["n"],
                }


def _text(value: Any) -> str:
    """As CSV holds it; "" for what is not known."""
    return "" if value is None else json.dumps(short(value, 6)) if isinstance(value, float) else str(value)


def write_rows(path: Path, rows: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> Path:
    with write_atomically(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _text(value) for key, value in row.items()} for row in rows)
    return path


def write_summary(params: Params, reports: Path, data: Path) -> None:
    """`reports/metrics.json` and `reports/cells.csv`."""
    write_json(reports / METRICS, headline_metrics(params, reports))
    write_rows(reports / CELLS, cell_rows(params, reports, data))
