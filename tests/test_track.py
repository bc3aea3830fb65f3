"""MLflow: a run an experiment and a run a cell, found again; one database for all; what is explicit stays out."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_json
from freezeasguard.reports.summary import write_summary
from freezeasguard.reports.track import FINGERPRINT, run_name, track_cells, workspace_root
from freezeasguard.settings.params import Params
from reported import cost, smoke, write_cells

ARMS = ["pretrained", "full", "random"]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writing MLflow's tables takes seconds."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "main").mkdir()
    monkeypatch.chdir(tmp_path / "main")
    shutil.copyfile(empty_database, "mlflow.db")


def track(params: Params, root: Path) -> tuple[int, int]:
    write_cells(params, root)
    write_summary(params, root / "reports", root / "data")
    return track_cells(params, root / "data", root / "reports")


def client() -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}")


def runs_of(store: Any) -> list[Any]:
    return store.search_runs([store.get_experiment_by_name("freezeasguard").experiment_id])


def parents(store: Any) -> dict[str, Any]:
    return {run.info.run_name: run for run in runs_of(store) if "mlflow.parentRunId" not in run.data.tags}


def test_an_experiment_is_a_run_with_a_run_a_cell_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "brisk-arum")
    root = Path.cwd()
    params = smoke(ARMS)
    assert track(params, root) == (3, 0)
    store = client()
    assert store.get_experiment_by_name("freezeasguard").tags["mlflow.experimentKind"] == "custom_model_development"
    (parent,) = parents(store).values()
    assert parent.info.run_name == run_name(params) == "smoke rho 0.3 seed 0 given"
    tags = parent.data.tags
    assert {k: tags[k] for k in ("rho", "seed", "roles", "profile", "dvc.experiment")} == {
        "rho": "0.3", "seed": "0", "roles": "given", "profile": "smoke", "dvc.experiment": "brisk-arum",
    }  # fmt: skip
    children = {run.info.run_name: run for run in runs_of(store) if "mlflow.parentRunId" in run.data.tags}
    assert sorted(children) == sorted(f"portraits-{arm}" for arm in ARMS)
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert {run.info.status for run in runs_of(store)} == {"FINISHED"}
    tracked = json.loads((root / "data/tracked.json").read_text())
    ids = {name: run.info.run_id for name, run in children.items()}
    marks = {name: run.data.tags[FINGERPRINT] for name, run in children.items()}
    assert tracked == {"cells": marks, "experiment": parent.data.tags[FINGERPRINT]}
    assert {name: tags[f"cell.{name}"] for name in ids} == ids
    assert parent.data.metrics["portraits.random.gap"] == pytest.approx(
        json.loads((root / "reports/metrics.json").read_text())["portraits"]["random"]["gap"]
    )
    full = ids["portraits-full"]
    curve = store.get_metric_history(full, "legal.train_loss")
    assert [point.step for point in curve] == [0, 1, 2, 3] and curve[0].value == pytest.approx(1.1)
    images = [item.path for item in store.list_artifacts(full, "images")]
    assert len([path for path in images if path.endswith(".png")]) == 6  # of three images a side


def test_nothing_explicit_is_sent(tmp_path: Path) -> None:
    track(smoke(ARMS, explicit=True), Path.cwd())
    suffixes = {path.suffix for path in (tmp_path / "main/mlruns").rglob("*") if path.is_file()}
    assert suffixes == {".json"}


def test_tracking_again_or_going_back_makes_no_second_run() -> None:
    root = Path.cwd()
    assert track(smoke(ARMS), root) == (3, 0)
    assert track(smoke(ARMS), root) == (0, 3)
    # another ratio: what is blind to it keeps its one run, and the experiment's own run shows it all the same
    assert track(smoke(ARMS, rho=0.5), root) == (1, 2)
    assert track(smoke(ARMS), root) == (0, 3)
    store = client()
    first, second = (parents(store)[f"smoke rho {rho} seed 0 given"].data.tags for rho in ("0.3", "0.5"))
    assert len(parents(store)) == 2 and len(runs_of(store)) == 2 + 4
    assert first["cell.portraits-full"] == second["cell.portraits-full"]
    assert first["cell.portraits-random"] != second["cell.portraits-random"]


def test_another_arm_or_role_is_told_apart() -> None:
    root = Path.cwd()
    track(smoke(ARMS), root)
    assert track(smoke([*ARMS, "random-70"]), root) == (1, 3)
    assert track(smoke(ARMS, roles="swapped"), root) == (3, 0)


def test_a_killed_track_is_taken_up_and_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    from freezeasguard.reports import track as module

    root, killed = Path.cwd(), []
    whole = module.Mirror.log_metrics

    def die(self: Any, run_id: str, values: Any) -> None:
        if len(killed) == 1:
            raise KeyboardInterrupt
        killed.append(run_id)
        whole(self, run_id, values)

    monkeypatch.setattr(module.Mirror, "log_metrics", die)
    with pytest.raises(KeyboardInterrupt):
        track(smoke(ARMS), root)
    assert not (root / "data/tracked.json").exists()
    assert sorted(run.info.status for run in runs_of(client())) == ["FINISHED", "RUNNING", "RUNNING"]
    monkeypatch.setattr(module.Mirror, "log_metrics", whole)
    assert track(smoke(ARMS), root) == (2, 1)
    statuses = sorted(run.info.status for run in runs_of(client()))
    assert statuses == ["FAILED", "FINISHED", "FINISHED", "FINISHED", "FINISHED"]
    assert len(parents(client())) == 1


def test_a_queued_experiment_writes_to_the_workspaces_database(monkeypatch: pytest.MonkeyPatch) -> None:
    main = Path.cwd()
    (main / "mlflow.db").unlink()
    queued = main / ".dvc/tmp/exps/tmpabc123"
    (queued / "below").mkdir(parents=True)
    assert workspace_root(queued) == workspace_root(queued / "below") == main
    assert workspace_root(main) == main
    monkeypatch.chdir(queued)
    track(smoke(ARMS), queued)
    assert (main / "mlflow.db").is_file() and (main / "mlruns").is_dir()
    assert (queued / "data/tracked.json").is_file()
    assert not list(queued.rglob("mlflow.db")) and not list(queued.rglob("mlruns"))


def test_the_environment_names_another_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere/own.db")
    track(smoke(ARMS), Path.cwd())
    assert (tmp_path / "elsewhere/own.db").is_file() and client().get_experiment_by_name("freezeasguard") is None


def _track_in(root: Path, seed: int) -> None:
    os.chdir(root)
    track(smoke(ARMS, seed=seed), root)


def test_two_experiments_may_track_into_a_new_database_at_once() -> None:
    main, context = Path.cwd(), multiprocessing.get_context("spawn")
    (main / "mlflow.db").unlink()
    folders = [main / f".dvc/tmp/exps/tmp{seed}" for seed in range(2)]
    for folder in folders:
        folder.mkdir(parents=True)
    jobs = [context.Process(target=_track_in, args=(folder, seed)) for seed, folder in enumerate(folders)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0, 0]
    assert len(parents(client())) == 2 and len(runs_of(client())) == 8


def test_a_file_that_is_no_database_is_named() -> None:
    Path("mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(FreezeAsGuardError) as error:
        track(smoke(ARMS), Path.cwd())
    assert "mlflow.db is no MLflow database" in str(error.value) and "\n" not in str(error.value)
    assert not Path("data/tracked.json").exists()


def test_a_database_of_another_program_is_named() -> None:
    Path("mlflow.db").unlink()
    connection = sqlite3.connect("mlflow.db")
    connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
    connection.execute("INSERT INTO alembic_version VALUES ('not-mlflow')")
    connection.commit()
    connection.close()
    with pytest.raises(FreezeAsGuardError) as error:
        track(smoke(ARMS), Path.cwd())
    assert "mlflow.db" in str(error.value) and "move" in str(error.value) and "\n" not in str(error.value)


def test_a_database_that_another_program_holds_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from freezeasguard.reports import track as module

    track(smoke(ARMS), Path.cwd())
    monkeypatch.setattr(module, "DATABASE_WAIT_S", 0.2)
    holder = sqlite3.connect("mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(
        FreezeAsGuardError, match=r"mlflow.db cannot be written \(database is locked\); stop the program"
    ):
        track(smoke(ARMS), Path.cwd())
    holder.close()


def test_every_run_has_its_fingerprint() -> None:
    track(smoke(ARMS), Path.cwd())
    marks = [run.data.tags[FINGERPRINT] for run in runs_of(client())]
    assert len(set(marks)) == len(marks) == 4


# --- kills, locks and broken disks ------------------------------------------------------------------


def _track_until_killed(root: Path) -> None:
    from freezeasguard.reports import track as module

    os.chdir(root)
    whole, logged = module.Mirror.log_metrics, []

    def die(self: Any, run_id: str, values: Any) -> None:
        if logged:
            os.kill(os.getpid(), signal.SIGKILL)
        logged.append(run_id)
        whole(self, run_id, values)

    module.Mirror.log_metrics = die  # pyright: ignore[reportAttributeAccessIssue]
    track(smoke(ARMS), root)


def test_a_track_that_got_sigkill_is_taken_up_without_a_second_run_of_anything() -> None:
    root = Path.cwd()
    job = multiprocessing.get_context("spawn").Process(target=_track_until_killed, args=(root,))
    job.start()
    job.join(120)
    assert job.exitcode == -signal.SIGKILL
    assert track(smoke(ARMS), root) == (2, 1)
    runs = {status: [r for r in runs_of(client()) if r.info.status == status] for status in ("FINISHED", "FAILED")}
    assert len(runs["FAILED"]) == 1 and len(runs_of(client())) == 5  # none RUNNING
    assert len({run.data.tags[FINGERPRINT] for run in runs["FINISHED"]}) == len(runs["FINISHED"]) == 4
    assert track(smoke(ARMS), root) == (0, 3)


def test_a_database_with_a_broken_page_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    track(smoke(ARMS), Path.cwd())
    content = bytearray(Path("mlflow.db").read_bytes())
    content[40_000:120_000] = b"\x5a" * 80_000
    Path("mlflow.db").write_bytes(content)
    Path("data/tracked.json").unlink()
    capfd.readouterr()
    with pytest.raises(
        FreezeAsGuardError, match=r"mlflow.db is no MLflow database, or broken \(.*\); move it"
    ) as error:
        track(smoke(ARMS), Path.cwd())
    assert "\n" not in str(error.value) and "SQL" not in capfd.readouterr().err
    assert not Path("data/tracked.json").exists()


def test_a_database_that_is_taken_while_it_is_written_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlflow.store.db import utils

    from freezeasguard.reports import track as module

    whole, text = module.Mirror.log_params, utils.sql.text
    monkeypatch.setattr(utils.sql, "text", lambda words: text(words.replace("= 20000", "= 100")))  # ms that it waits

    def taken(self: Any, run_id: str, values: Any) -> None:
        holder = sqlite3.connect("mlflow.db", isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        try:
            whole(self, run_id, values)
        finally:
            holder.close()

    monkeypatch.setattr(module.Mirror, "log_params", taken)
    with pytest.raises(FreezeAsGuardError, match=r"database is locked\); stop the program that holds it") as error:
        track(smoke(ARMS), Path.cwd())
    assert "\n" not in str(error.value) and "SQL" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no"), sqlite3.OperationalError("database or disk is full\n[SQL: INSERT ...]")]
)
def test_a_full_disk_is_told(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    from freezeasguard.reports import track as module

    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(module.Mirror, "log_params", full)
    with pytest.raises(FreezeAsGuardError, match=r"^the disk is full \(\d+ MiB free\) while writing .*mlflow.db"):
        track(smoke(ARMS), Path.cwd())
    assert not Path("data/tracked.json").exists()


def test_costs_are_metrics_and_no_part_of_what_a_run_is() -> None:
    root, params = Path.cwd(), smoke(ARMS)
    assert track(params, root) == (3, 0)
    shown = {run.info.run_name: run.data.metrics for run in runs_of(client())}
    full, pretrained = shown["portraits-full"], shown["portraits-pretrained"]
    assert full["legal.cost.median_step_s"] == cost(0.0, 1)["median_step_s"]
    assert full["illegal.cost.peak_bytes"] == cost(0.0, 0)["peak_bytes"]
    assert not any(".cost." in name for name in pretrained)  # nobody trained
    path = root / "data/costs/adapt/portraits-full.json"
    slower = {user: {**one, "median_step_s": 9.0} for user, one in json.loads(path.read_text()).items()}
    write_json(path, slower)
    assert track_cells(params, root / "data", root / "reports") == (0, 3)
