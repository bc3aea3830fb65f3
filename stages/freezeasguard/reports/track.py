"""MLflow, the mirror: files are the record; one run an experiment shows them, with a run a cell below it.

A run is found again by a hash of what it shows - a cell by its settings and scores, an experiment by its cells - so
that tracking twice, or restoring an old value from DVC's cache, makes no second run. A cell that does not depend on
what an experiment changed keeps its one run under the experiment that made it first; every experiment's own run names
the runs of all its cells.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from freezeasguard.arms import Arm
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import explain_full_disk, fingerprint, write_json
from freezeasguard.models.protected_file import read_protected_file
from freezeasguard.reading import read_json, read_png
from freezeasguard.reports.measures import read_losses, read_scores
from freezeasguard.reports.paper_tables import COSTS, read_costs
from freezeasguard.reports.summary import METRICS, cell_settings
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.params import Params
from freezeasguard.sides import SIDES

EXPERIMENT = "freezeasguard"
FINGERPRINT = "freezeasguard.fingerprint"
SQLITE = "sqlite:///"
EXPERIMENTS = (".dvc", "tmp", "exps")
"""Below the workspace's root: where DVC runs queued experiments, each in a folder of its own that it deletes."""
BATCH = 1000
"""Metrics that MLflow takes at once."""
SAMPLES = 6
"""Images a cell and side."""
LOCK_WAIT_S = 600
DATABASE_WAIT_S = 10
HELD = "stop the program that holds it, e.g. `mlflow ui`"


def workspace_root(folder: Path) -> Path:
    """The workspace that a queued experiment's folder belongs to; the folder itself anywhere else."""
    parts = folder.parts
    for i in range(len(parts) - len(EXPERIMENTS) + 1):
        if parts[i : i + len(EXPERIMENTS)] == EXPERIMENTS:
            return Path(*parts[:i])
    return folder


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the one database of the workspace."""
    default = f"{SQLITE}{workspace_root(Path.cwd()) / 'mlflow.db'}"
    return os.environ.get("MLFLOW_TRACKING_URI") or default


# --- what a run shows -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A case and arm with everything that its run shows."""

    params: Params
    case: str
    arm: Arm
    data: Path
    reports: Path

    @property
    def name(self) -> str:
        return f"{self.case}-{self.arm.name}"

    @cached_property
    def scores(self) -> dict[str, Any]:
        return read_scores(self.reports, self.case, self.arm.name)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What it depends on, flat, as MLflow shows it."""
        p, blocks = self.params, cell_settings(self.params, self.case, self.arm)
        flat = {f"{block}.{key}": value for block, values in blocks.items() for key, value in values.items()}
        own = {"arm": self.arm.name, "rho": self.arm.rho(p.rho), "seed": p.seed, "roles": p.roles, "profile": p.profile}
        return {**own, **flat}

    @cached_property
    def mark(self) -> str:
        return fingerprint(self.case, self.arm.name, self.settings, self.scores)

    def metrics(self) -> dict[str, float]:
        """Values by "side.part.score"; the intervals are in the run's scores.json."""
        metrics: dict[str, float] = {}
        for side, parts in self.scores.items():
            metrics |= {f"{side}.loss.{name}": value for name, value in parts["loss"].items() if value is not None}
            for part in ("all", "held_out"):
                for name, score in parts.get(part, {}).items():
                    metrics[f"{side}.{part}.{name}"] = score["value"]
                    if SCORES[name].missing:
                        metrics[f"{side}.{part}.{name}.n_missing"] = score["n_missing"]
        return metrics | self.costs()

    def costs(self) -> dict[str, float]:
        """What a step of each user took; shown, but no part of `mark`: another machine's times make no other run."""
        users = read_costs(self.data, self.case, self.arm.name)
        return {
            f"{user}.cost.{key}": costs[key] for user, costs in users.items() for key in COSTS if costs[key] is not None
        }

    def losses(self) -> Iterator[tuple[str, int, float]]:
        """(metric, step, value) of both users' training."""
        for side in SIDES:
            for step, loss in enumerate(read_losses(self.data / "adapted" / self.case / self.arm.name, side)):
                yield f"{side}.train_loss", step, loss

    def samples(self) -> Iterator[tuple[str, int, Path]]:
        """(side, number, image); none of an explicit domain."""
        if self.params.domain_of(self.case).any_explicit:
            return
        for side in SIDES:
            folder = self.data / "images" / self.case / self.arm.name / side
            for step, image in enumerate(sorted(folder.iterdir())[:SAMPLES]):
                yield side, step, image


def run_name(params: Params) -> str:
    return f"{params.profile} rho {params.rho:g} seed {params.seed} {params.roles}"


def experiment_tags(params: Params) -> dict[str, str]:
    """Where an experiment's numbers come from."""
    tags = {key: str(getattr(params, key)) for key in ("profile", "rho", "seed", "roles")}
    if name := os.environ.get("DVC_EXP_NAME"):
        tags["dvc.experiment"] = name
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    if found.returncode == 0:
        tags["git.commit"] = tags["mlflow.source.git.commit"] = found.stdout.strip()
    return tags


# --- the store ------------------------------------------------------------------------------------


@contextmanager
def exclusively(uri: str) -> Iterator[None]:
    """Hold a local database for one process: two that create or upgrade it at once break it."""
    if not uri.startswith(SQLITE):
        yield
        return
    from filelock import FileLock, Timeout

    path = Path(uri.removeprefix(SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{path}.lock", timeout=LOCK_WAIT_S):
            yield
    except Timeout:
        raise FreezeAsGuardError(
            f"{path}.lock was held for {LOCK_WAIT_S} s by another `track`; wait for it and run `dvc repro track` again"
        ) from None


def check_database(path: Path) -> None:
    """A file that is no database, or that another program holds, is told before MLflow prints its SQL."""
    import sqlite3

    if not path.exists():
        return
    try:
        connection = sqlite3.connect(path, timeout=DATABASE_WAIT_S)
        try:
            connection.execute("BEGIN IMMEDIATE")
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            connection.rollback()
            if found != "ok":
                raise sqlite3.DatabaseError(found.splitlines()[-1])
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        raise FreezeAsGuardError(
            f"{path} cannot be written ({error}); {HELD}, and run `dvc repro track` again"
        ) from None
    except sqlite3.DatabaseError as error:
        raise FreezeAsGuardError(
            f"{path} is no MLflow database, or broken ({error}); move it away and run `dvc repro track`, which writes "
            "a new one"
        ) from None


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """MLflow's errors in one line, with the database and what to do."""
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # logs a page of SQL before it raises
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("mlflow", "sqlalchemy", "sqlite3", "alembic"):
            raise
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        held = "database is locked" in told
        remedy = HELD if held else "move a broken database away, or point MLFLOW_TRACKING_URI at another"
        raise FreezeAsGuardError(
            f"MLflow cannot use {uri.removeprefix(SQLITE)} ({told}); {remedy}, and run `dvc repro track` again"
        ) from error


class Mirror:
    """The MLflow experiment that everything is shown in."""

    def __init__(self, uri: str) -> None:
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(uri)
        self.local = uri.startswith(SQLITE)
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            # Beside the database: a queued experiment's own folder is deleted.
            beside = Path(uri.removeprefix(SQLITE)).absolute().parent / "mlruns"
            self.id = self.client.create_experiment(EXPERIMENT, beside.as_uri() if self.local else None)
        else:
            self.id = experiment.experiment_id
        # The UI would open on pages for language models.
        self.client.set_experiment_tag(self.id, "mlflow.experimentKind", "custom_model_development")

    def find(self, mark: str, status: str | None = None) -> Any | None:
        """The newest run with this fingerprint."""
        query = f"tags.`{FINGERPRINT}` = '{mark}'" + (f" and attributes.status = '{status}'" if status else "")
        return next(iter(self.client.search_runs([self.id], query, max_results=1)), None)

    def fail_dead_runs(self, marks: set[str]) -> int:
        """End runs that a killed `track` left running: all in a local database, ours alone now; elsewhere our own."""
        dead = [
            run
            for run in self.client.search_runs([self.id], "attributes.status = 'RUNNING'")
            if (mark := run.data.tags.get(FINGERPRINT)) and (self.local or mark in marks)
        ]
        for run in dead:
            self.client.set_terminated(run.info.run_id, "FAILED")
        return len(dead)

    def start(self, name: str, mark: str, tags: dict[str, str]) -> str:
        return self.client.create_run(self.id, run_name=name, tags={FINGERPRINT: mark, **tags}).info.run_id

    def log_metrics(self, run_id: str, values: list[tuple[str, int, float]]) -> None:
        """(metric, step, value) each."""
        from mlflow.entities import Metric

        batch = [Metric(key, float(value), 0, step) for key, step, value in values]
        for start in range(0, len(batch), BATCH):
            self.client.log_batch(run_id, metrics=batch[start : start + BATCH])

    def log_params(self, run_id: str, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(run_id, params=[Param(key, str(value)) for key, value in values.items()])

    def log_cell(self, cell: Cell, parent: str) -> str:
        """A cell's run; returns its id."""
        tags = {"case": cell.case, "arm": cell.arm.name, "mlflow.parentRunId": parent}
        run_id = self.start(cell.name, cell.mark, tags)
        self.log_params(run_id, cell.settings)
        self.log_metrics(run_id, [*((key, 0, value) for key, value in cell.metrics().items()), *cell.losses()])
        for side, step, path in cell.samples():
            image = read_png(path, f"run `dvc repro -f generate@{cell.name}`")
            self.client.log_image(run_id, image, key=side, step=step, synchronous=True)
        protected = cell.data / "protected" / cell.case / cell.arm.protected.name
        self.client.log_dict(run_id, read_protected_file(protected), "protected.json")
        self.client.log_dict(run_id, cell.scores, "scores.json")
        self.client.set_terminated(run_id)
        return run_id

    def log_experiment(self, run_id: str, cells: dict[str, str], params: Params, reports: Path) -> None:
        """What the experiment's own run shows: the headline metrics, the figures, and where each cell's run is."""
        for name, child in cells.items():
            self.client.set_tag(run_id, f"cell.{name}", child)
        self.client.log_dict(run_id, cells, "cells.json")
        self.log_params(run_id, {key: getattr(params, key) for key in ("profile", "rho", "seed", "roles")})
        headline = read_json(reports / METRICS, "run `dvc repro tables`")
        self.log_metrics(
            run_id,
            [
                (f"{case}.{arm}.{key}", 0, value)
                for case, arms in headline.items()
                for arm, values in arms.items()
                for key, value in values.items()
            ],
        )
        if (reports / "figures").is_dir():
            self.client.log_artifacts(run_id, str(reports / "figures"), "figures")
        self.client.set_terminated(run_id)


def track_cells(params: Params, data: Path, reports: Path) -> tuple[int, int]:
    """Log what MLflow does not know yet, and write `tracked.json`; returns how many cells were new and how many known.

    Raises:
        FreezeAsGuardError: the database is broken, or held by another program.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    cells = [Cell(params, case, arm, data, reports) for case, arm in params.cells]
    mark = fingerprint("experiment", run_name(params), sorted(cell.mark for cell in cells))
    uri = tracking_uri()
    new, runs = 0, {}
    with exclusively(uri), explained(uri), explain_full_disk(Path(uri.removeprefix(SQLITE))):
        if uri.startswith(SQLITE):
            check_database(Path(uri.removeprefix(SQLITE)))
        mirror = Mirror(uri)
        mirror.fail_dead_runs({mark, *(cell.mark for cell in cells)})
        found = mirror.find(mark)
        parent = found.info.run_id if found else mirror.start(run_name(params), mark, experiment_tags(params))
        for cell in cells:
            known = mirror.find(cell.mark, "FINISHED")
            new += known is None
            runs[cell.name] = known.info.run_id if known else mirror.log_cell(cell, parent)
        if new or not found or found.info.status != "FINISHED":
            mirror.log_experiment(parent, runs, params, reports)
    # By fingerprint, not by run id: the lock file that names this output is then the same on every machine.
    write_json(data / "tracked.json", {"experiment": mark, "cells": {cell.name: cell.mark for cell in cells}})
    return new, len(cells) - new
