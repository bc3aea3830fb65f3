"""Twenty kills at random moments of `dvc repro`: the tables are those of an undisturbed run, and nothing is left.

Takes many minutes and is deselected by default: `pytest -m kill -s tests/test_kill_series.py`. It prints a line a
kill: the moment, what was hit with which signal, the stage at work, and what DVC itself left torn. DVC writes its
`dvc.lock` in place, so that a SIGKILL at that moment may tear it; the series then does what the README says, and
takes the last good one, as `git checkout dvc.lock` would.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from project import copy_project, repro

pytestmark = pytest.mark.kill

KILLS, SEED = 20, 0
SHARE = 1 / 10
"""A kill comes after at most this share of what the undisturbed run took: many a repro gets some stages on."""
WHO = ("parent", "child", "group")
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
RESULTS = ("latents", "finetuned", "protected", "adapted", "images", "reference", "scores")
REPORTS = ("tables", "scores", "calibration", "cells.csv", "metrics.json")


def results(project: Path) -> dict[str, bytes]:
    places = [project / "data" / name for name in RESULTS] + [project / "reports" / name for name in REPORTS]
    files = [file for place in places for file in [place, *place.rglob("*")] if file.is_file()]
    return {str(file.relative_to(project)): file.read_bytes() for file in files}


def at_work(project: Path) -> list[psutil.Process]:
    """The processes in the project's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(project):
                found.append(process)
        except psutil.Error:
            continue
    return found


def temporary_files(project: Path) -> list[str]:
    folders = (project / "data", project / "reports")
    return [str(p) for folder in folders for p in folder.rglob("*") if p.suffix in (".tmp", ".old")]


def stage_at_work(processes: list[psutil.Process]) -> str:
    for process in processes:
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if len(words) > 2 and words[2].startswith("stages."):
            return " ".join(words[2:])
    return "(dvc)"


def strike(dvc: subprocess.Popen[bytes], who: str, number: int, rng: random.Random) -> str:
    """Send the signal; returns the stage that was at work."""
    below = psutil.Process(dvc.pid).children(recursive=True)
    stage = stage_at_work(below)
    if who == "group":
        os.killpg(dvc.pid, number)
    elif who == "parent" or not below:
        dvc.send_signal(number)
    else:
        os.kill(rng.choice(below).pid, number)
    return stage


def is_torn(path: Path, load: Any) -> bool:
    try:
        return path.is_file() and not isinstance(load(path.read_text()), dict)
    except (ValueError, yaml.YAMLError):
        return True


def mend(project: Path, good: Path) -> list[str]:
    """Put back what DVC itself writes in place and was killed at; returns the names."""
    torn = []
    if is_torn(project / "dvc.lock", yaml.safe_load):
        torn.append("dvc.lock")
        shutil.copyfile(good, project / "dvc.lock")
    if is_torn(project / ".dvc/tmp/rwlock", json.loads):
        torn.append("rwlock")
        (project / ".dvc/tmp/rwlock").unlink()
    if (project / "dvc.lock").is_file():
        shutil.copyfile(project / "dvc.lock", good)
    return torn


def runs_by_status(project: Path) -> dict[str, list[str]]:
    """status -> the fingerprints of MLflow's runs."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("freezeasguard")
    assert experiment is not None
    found: dict[str, list[str]] = {}
    for run in client.search_runs([experiment.experiment_id]):
        found.setdefault(run.info.status, []).append(run.data.tags["freezeasguard.fingerprint"])
    return found


def start_over(project: Path) -> None:
    """All but the inputs goes, DVC's memory of runs too."""
    shutil.rmtree(project / ".dvc/cache", ignore_errors=True)
    (project / "dvc.lock").unlink(missing_ok=True)
    for name in (*RESULTS, "settings", "fetched", "raw", "captioned", "splits", "checkpoints", "costs", "rendered"):
        shutil.rmtree(project / "data" / name, ignore_errors=True)


def test_twenty_kills_leave_the_tables_of_an_undisturbed_run(tmp_path: Path) -> None:
    calm, struck = (copy_project(tmp_path / name) for name in ("calm", "struck"))
    begin = time.monotonic()
    repro(calm)
    expected = results(calm)
    undisturbed = time.monotonic() - begin
    print(f"\nundisturbed: {undisturbed:.0f} s, {len(expected)} files", flush=True)
    rng, good, begun = random.Random(SEED), tmp_path / "good.lock", time.monotonic()
    good.write_text("schema: '2.0'\n")
    hits = itertools.cycle(itertools.product(SIGNALS, WHO))
    n_kills = n_torn = n_whole = n_left = 0
    while n_kills < KILLS:
        with (tmp_path / "log").open("wb") as log:
            command = [sys.executable, "-m", "dvc", "repro"]
            dvc = subprocess.Popen(command, cwd=struck, stdout=log, stderr=log, start_new_session=True)
            wait = rng.uniform(1, undisturbed * SHARE)
            try:
                assert dvc.wait(wait) == 0, (tmp_path / "log").read_text()[-3000:]
                n_whole += 1
                start_over(struck)
                continue
            except subprocess.TimeoutExpired:
                number, who = next(hits)
            stage = strike(dvc, who, number, rng)
            dvc.wait(600)
        deadline = time.monotonic() + 15
        while (left := at_work(struck)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, [process.cmdline() for process in left]
        n_kills += 1
        torn, leftovers = mend(struck, good), temporary_files(struck)
        n_torn, n_left = n_torn + len(torn), n_left + len(leftovers)
        told = f"exit {dvc.returncode}, {len(leftovers)} leftovers" + (f", torn: {', '.join(torn)}" if torn else "")
        print(
            f"{n_kills:2} after {wait:4.1f} s {signal.Signals(number).name} to {who:6} at {stage}: {told}", flush=True
        )
        assert "Traceback" not in (tmp_path / "log").read_text(), (tmp_path / "log").read_text()[-3000:]
    print(
        f"then {len(repro(struck))} stages ran; {time.monotonic() - begun:.0f} s in all; {n_whole} whole runs between"
    )
    print(f"{n_left} leftovers counted after kills, {n_torn} files of DVC's own torn")
    assert repro(struck) == []
    found = results(struck)
    assert found.keys() == expected.keys() and [p for p in found if found[p] != expected[p]] == []
    assert temporary_files(struck) == [] and at_work(struck) == []
    assert not list((struck / "data/checkpoints").glob("*"))
    statuses = runs_by_status(struck)
    print(f"MLflow: { {status: len(marks) for status, marks in statuses.items()} }")
    assert statuses.keys() <= {"FINISHED", "FAILED"} and len(statuses["FINISHED"]) == len(set(statuses["FINISHED"]))
