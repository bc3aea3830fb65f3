"""`freezeasguard run -S`: experiments as DVC's queue makes them, found by DVC in the workspace."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.running.grid import CLONES, combinations, experiment_name, run_grid
from project import commit, dvc
from project import run as call
from test_run import RUN, project, run, stage, start, wait_for

STAGES = {
    "settings": {**stage("cat params.yaml > settings", "settings"), "params": ["seed", "roles"]},
    "train": stage(
        "grep -q 'seed: 2' settings && ! test -e $ALLOWED && exit 3; cp settings model", "model", "settings"
    ),
    "tables": {
        "cmd": "mkdir -p reports && cp model reports/cells",
        "deps": ["model"],
        "outs": [{"reports/cells": {"cache": False}}],
    },
}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = project(tmp_path / "project", STAGES)
    (folder / "params.yaml").write_text("seed: 0\nroles: given\nother: 1\n")
    commit(folder)
    return folder


def references(folder: Path) -> list[str]:
    found = subprocess.run(
        ["git", "for-each-ref", "--format=%(refname)", "refs/exps"], cwd=folder, capture_output=True, text=True
    )
    return [ref for ref in found.stdout.split() if "/grid" not in ref and ref.count("/") == 4]


def saved(folder: Path) -> dict[str, str]:
    """Experiment -> its reports/cells."""
    return {ref.rpartition("/")[2]: call(["git", "show", f"{ref}:reports/cells"], folder) for ref in references(folder)}


def test_a_grid_is_every_combination_and_dvc_finds_its_experiments(workspace: Path) -> None:
    before = (workspace / "params.yaml").read_text()
    out = run(workspace, "--jobs", "2", "-S", "seed=0,1", "-S", "roles=swapped").stdout
    assert "2 of 2 experiments ended well" in out
    expected = {f"seed-{s}-roles-swapped": f"seed: {s}\nroles: swapped\nother: 1\n" for s in (0, 1)}
    assert saved(workspace) == expected
    shown = json.loads(dvc(workspace, "exp", "show", "--json"))
    names = {exp["name"] for baseline in shown for exp in baseline["experiments"] or []}
    assert names == expected.keys()
    # the workspace is as it was, and has the models' cache
    assert (workspace / "params.yaml").read_text() == before and not (workspace / "model").exists()
    assert not any((workspace / CLONES).iterdir())
    dvc(workspace, "exp", "apply", "seed-1-roles-swapped")
    assert "roles: swapped" in (workspace / "model").read_text()


def test_a_failed_experiment_stops_no_other_and_goes_on_in_its_clone(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = tmp_path / "allowed"
    monkeypatch.setenv("ALLOWED", str(allowed))
    done = run(workspace, "-S", "seed=2,3", check=False)
    assert done.returncode == 1 and "experiments failed: seed-2; the same command" in done.stderr
    assert list(saved(workspace)) == ["seed-3"] and (workspace / CLONES / "seed-2/settings").is_file()
    allowed.touch()
    assert "2 stages ran, 1 were" in run(workspace, "-S", "seed=2").stdout
    assert sorted(saved(workspace)) == ["seed-2", "seed-3"] and not (workspace / CLONES / "seed-2").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_grid_that_is_ended_leaves_nobody_at_work_and_goes_on(tmp_path: Path, number: int) -> None:
    told = tmp_path / "pid"
    slow = stage(f"test -e {told} || {{ echo $$ > {told}; sleep 60; }}; cp settings model", "model", "settings")
    workspace = project(tmp_path / "project", {**STAGES, "train": slow})
    (workspace / "params.yaml").write_text("seed: 0\nroles: given\n")
    commit(workspace)
    grid = start(workspace, "--jobs", "2", "-S", "seed=5,6")
    wait_for(lambda: told.is_file() and told.read_text())
    below, at_work = psutil.Process(grid.pid).children(recursive=True), psutil.Process(int(told.read_text()))
    grid.send_signal(number)
    grid.communicate(timeout=60)
    assert grid.returncode != 0
    _, alive = psutil.wait_procs([*below, at_work], timeout=10)
    assert [process.cmdline() for process in alive] == []
    assert saved(workspace) == {} and "2 of 2 experiments ended well" in run(workspace, "-S", "seed=5,6").stdout
    assert sorted(saved(workspace)) == ["seed-5", "seed-6"]


def test_what_ended_well_runs_again_for_other_targets_from_another_head_or_once_removed(workspace: Path) -> None:
    def runs(*arguments: str) -> bool:
        out = run(workspace, *arguments).stdout
        assert "1 of 1 experiments ended well" in out
        return "seed-1 has ended well before" not in out

    (workspace / "reports").mkdir()
    (workspace / "reports/cells").write_text("another experiment's")  # as git brings them to a clone
    commit(workspace)
    assert runs("train", "-S", "seed=1") and not runs("train", "-S", "seed=1", "--jobs", "2")
    assert saved(workspace) == {"seed-1": "another experiment's"}
    (ref,) = [ref for ref in references(workspace) if ref.endswith("/seed-1")]
    lock = call(["git", "show", f"{ref}:dvc.lock"], workspace)
    assert "train:" in lock and "tables:" not in lock
    assert runs("-S", "seed=1") and not runs("-S", "seed=1")
    assert not runs("train", "-S", "seed=1")  # all stages ran
    first = saved(workspace)
    dvc(workspace, "exp", "remove", "seed-1")
    assert runs("-S", "seed=1") and saved(workspace) == first
    (workspace / "params.yaml").write_text("seed: 0\nroles: given\nother: 2\n")
    commit(workspace)
    assert runs("-S", "seed=1")


def test_what_is_not_committed_is_refused(workspace: Path) -> None:
    (workspace / "params.yaml").write_text("seed: 5\n")
    with pytest.raises(FreezeAsGuardError, match="files that git tracks were edited; commit them"):
        run_grid(workspace, ["seed=1"])


def test_settings_are_dvcs(workspace: Path) -> None:
    assert combinations(["seed=0,1", "rho=0.5"]) == [["seed=0", "rho=0.5"], ["seed=1", "rho=0.5"]]
    assert experiment_name(["seed=0", "mask.preset=paper"]) == "seed-0-mask.preset-paper"
    assert experiment_name(["rho=-1"]) != experiment_name(["rho=1"])
    with pytest.raises(FreezeAsGuardError, match="write KEY=VALUE"):
        combinations(["seed"])
    done = subprocess.run([*RUN, "-S", "nosuch=1"], cwd=workspace, capture_output=True, text=True)
    assert done.returncode == 1 and "nosuch" in done.stderr
