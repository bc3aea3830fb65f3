"""MLflow, the mirror: files are the record, one run a cell shows them.

A run is found again by a hash of its cell, parameters and metrics, so that tracking twice, or restoring
an old value from DVC's cache, makes no second run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from freezeasguard.files import fingerprint, read_json
from freezeasguard.models.protected_file import read_protected_file
from freezeasguard.reports.tables import read_scores
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.params import Params
from freezeasguard.sides import SIDES

DEFAULT_URI = "sqlite:///mlflow.db"
FINGERPRINT = "freezeasguard.fingerprint"


def cell_parameters(params: Params, case: str, arm: str) -> dict[str, Any]:
    """What a cell depends on, flat, as MLflow shows it."""
    blocks: dict[str, Any] = {
        "case": params.cases[case].model_dump(exclude={"sweep"}),
        "adapt": params.adapt_block(case, arm).model_dump(),
        "generate": params.generate.model_dump(),
    }
    if arm.startswith("freezeasguard"):
        blocks["mask"] = {"preset": params.mask.preset, **params.mask.settings()}
        blocks["relearn"] = params.relearn.model_dump()
    flat = {f"{block}.{key}": value for block, values in blocks.items() for key, value in values.items()}
    return {"arm": arm, "rho": params.arm_rho(arm), "seed": params.seed, "profile": params.profile, **flat}


def cell_metrics(scores: dict[str, Any]) -> dict[str, float]:
    """Values by "side.part.score"; the intervals are in the run's scores.json."""
    metrics: dict[str, float] = {}
    for side, parts in scores.items():
        metrics |= {f"{side}.loss.{name}": value for name, value in parts["loss"].items() if value is not None}
        for part in ("all", "held_out"):
            for name, score in parts.get(part, {}).items():
                metrics[f"{side}.{part}.{name}"] = score["value"]
                if SCORES[name].missing:
                    metrics[f"{side}.{part}.{name}.n_missing"] = score["n_missing"]
    return metrics


def track_cells(params: Params, data: Path, reports: Path) -> tuple[int, int]:
    """Log the cells that MLflow does not know yet; returns how many were new and how many known."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    import mlflow
    from mlflow.tracking import MlflowClient

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_URI))
    experiment = client.get_experiment_by_name("freezeasguard")
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("freezeasguard")
    new = known = 0
    for cell in params.cells.values():
        settings = cell_parameters(params, cell.case, cell.arm)
        scores = read_scores(reports, cell.case, cell.arm)
        metrics = cell_metrics(scores)
        mark = fingerprint(cell.case, cell.arm, settings, scores)
        if client.search_runs([experiment_id], f"tags.`{FINGERPRINT}` = '{mark}' and attributes.status = 'FINISHED'"):
            known += 1
            continue
        run = client.create_run(
            experiment_id, run_name=f"{cell.case}-{cell.arm}", tags={FINGERPRINT: mark, "case": cell.case}
        )
        run_id = run.info.run_id
        entities = mlflow.entities
        curves = [
            entities.Metric(f"{side}.train_loss", loss, 0, step)
            for side in SIDES
            for step, loss in enumerate(
                read_json(data / "adapted" / cell.case / cell.arm / f"{side}.json", "run `dvc repro adapt`")["losses"]
            )
        ]
        values = [entities.Metric(key, float(value), 0, 0) for key, value in metrics.items()]
        batch = [*values, *curves]
        client.log_batch(run_id, params=[entities.Param(k, str(v)) for k, v in settings.items()])
        for start in range(0, len(batch), 1000):
            client.log_batch(run_id, metrics=batch[start : start + 1000])
        for figure in (f"masks-{cell.case}.png", f"samples-{cell.case}.png"):
            if (reports / "figures" / figure).is_file():
                client.log_artifact(run_id, str(reports / "figures" / figure), "figures")
        explicit = params.domains[params.cases[cell.case].domain].explicit
        for side in () if explicit else SIDES:
            for image in sorted((data / "images" / cell.case / cell.arm / side).iterdir())[:6]:
                client.log_artifact(run_id, str(image), f"samples/{side}")
        protected = read_protected_file(data / "protected" / cell.case / cell.protected)
        client.log_dict(run_id, protected, "protected.json")
        client.log_dict(run_id, scores, "scores.json")
        client.set_terminated(run_id)
        new += 1
    return new, known
