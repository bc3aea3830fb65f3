"""`freezeasguard run`: a serial `dvc repro` side by side - same lock, same files, same cache, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.running.engine import executor_names, read_executor
from freezeasguard.running.pipeline import Pipeline
from freezeasguard.running.screen import last_words
from processes import hear_ctrl_c

RUN = [sys.executable, "-c", "from freezeasguard.cli import app; app()", "run"]
DVC = [sys.executable, "-m", "dvc"]


def project(folder: Path, stages: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "seed").write_text("0\n")
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    for command in (["git", "init", "-q"], [*DVC, "init", "-q"], [*DVC, "config", "core.analytics", "false"]):
        subprocess.run(command, cwd=folder, check=True)
    return folder


def stage(command: str, out: str, *deps: str) -> dict[str, Any]:
    return {"cmd": command, "deps": list(deps), "outs": [out]} if deps else {"cmd": command, "outs": [out]}


def cells(n: int = 3, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Two stages a cell and one over all; the later a cell, the sooner it ends."""
    found: dict[str, Any] = {}
    for i in range(n):
        found[f"train-{i}"] = stage(f"sleep 0.{n - i} && echo {i} > train{i}", f"train{i}", "seed")
        found[f"score-{i}"] = stage(f"cat train{i} train{i} > score{i}", f"score{i}", f"train{i}")
    found["tables"] = stage("cat score* > tables", "tables", *(f"score{i}" for i in range(n)))
    return {**found, **(more or {})}


def run(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*RUN, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)
    assert not check or done.returncode == 0, done.stderr
    return done


def kept(folder: Path) -> dict[str, bytes]:
    """dvc.lock, what the stages wrote, and DVC's cache and run cache, by path."""
    roots = [folder / ".dvc" / "cache", folder]
    files = {path for path in roots[0].rglob("*") if path.is_file()} | {p for p in folder.iterdir() if p.is_file()}
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    ignored = found.pop(".gitignore").splitlines()  # DVC adds a line as a stage ends
    return {**found, ".gitignore": b"\n".join(sorted(ignored))}


def wait_for(condition: Callable[[], Any], seconds: float = 40) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = project(tmp_path_factory.mktemp("serial") / "project", cells())
    subprocess.run([*DVC, "repro", "-q"], cwd=folder, check=True)
    return folder


def test_a_run_leaves_what_a_serial_repro_leaves(tmp_path: Path, serial: Path) -> None:
    ours = project(tmp_path / "ours", cells())
    done = run(ours, "--jobs", "2")
    assert "7 stages ran, 0 were" in done.stdout
    assert kept(ours) == kept(serial)  # dvc.lock in the serial order, though later cells ended first
    assert subprocess.run([*DVC, "status", "-q"], cwd=ours).returncode == 0
    assert "0 stages ran, 7 were" in run(ours).stdout
    # back from the run cache, without a command
    (ours / "dvc.lock").unlink()
    (ours / "tables").unlink()
    assert "0 stages ran, 7 were" in run(ours).stdout
    assert kept(ours) == kept(serial)


def test_targets_run_what_they_stand_on_and_nothing_else(tmp_path: Path) -> None:
    ours = project(tmp_path / "ours", cells())
    assert "2 stages ran" in run(ours, "score-1").stdout
    assert sorted(yaml.safe_load((ours / "dvc.lock").read_text())["stages"]) == ["score-1", "train-1"]


def test_a_failed_stage_stops_only_what_stands_on_it(tmp_path: Path) -> None:
    more = {"bad": stage("echo some words; echo why it failed; exit 3", "bad"), "after": stage("cp bad c", "c", "bad")}
    ours = project(tmp_path / "ours", cells(2, more))
    done = run(ours, check=False)
    assert done.returncode == 1
    assert "bad: exit code 3: why it failed (see .dvc/tmp/freezeasguard/logs/bad.log)" in done.stderr
    assert "after was left out: it stands on bad" in done.stderr
    assert (ours / "tables").read_text() == "0\n0\n1\n1\n"
    assert "some words" in (ours / ".dvc/tmp/freezeasguard/logs/bad.log").read_text()
    assert {"bad", "after"}.isdisjoint(yaml.safe_load((ours / "dvc.lock").read_text())["stages"])


def test_a_stage_that_writes_no_output_is_told(tmp_path: Path) -> None:
    ours = project(tmp_path / "ours", {"empty": stage("true", "never")})
    done = run(ours, check=False)
    assert done.returncode == 1 and "output 'never' does not exist" in done.stderr


SLOW = {"slow": stage("echo $$ > pid; sleep 30; echo done > slow", "slow")}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([*RUN, *arguments], cwd=folder, preexec_fn=hear_ctrl_c, **pipes)


def pid_of(folder: Path) -> int:
    path = folder / "pid"
    return int(wait_for(lambda: path.is_file() and path.read_text()))


def test_a_stage_that_is_killed_has_failed(tmp_path: Path) -> None:
    ours = project(tmp_path / "ours", SLOW)
    running = start(ours)
    os.kill(pid_of(ours), signal.SIGKILL)
    _, words = running.communicate(timeout=60)
    assert running.returncode == 1 and "slow: exit code -9" in words


def test_a_worker_that_is_killed_is_replaced_and_the_stage_runs_again(tmp_path: Path) -> None:
    again = "if [ -f once ]; then echo done > slow; else touch once; echo $$ > pid; sleep 30; fi"
    ours = project(tmp_path / "ours", {"slow": stage(again, "slow")})
    running = start(ours)
    shell = psutil.Process(pid_of(ours))
    worker = shell.parent()
    assert worker is not None and worker.pid != running.pid
    worker.kill()
    shell.kill()
    out, words = running.communicate(timeout=90)
    assert running.returncode == 0, words
    assert "1 stages ran" in out and (ours / "slow").read_text() == "done\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_ended_goes_on_where_it_was_and_leaves_nobody_at_work(tmp_path: Path, number: int) -> None:
    ours = project(tmp_path / "ours", {"first": stage("echo 1 > first", "first"), **SLOW})
    running = start(ours, "--jobs", "2")
    pid_of(ours)
    wait_for(lambda: (ours / "dvc.lock").is_file())
    children = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(number)
    running.communicate(timeout=60)
    assert running.returncode != 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert [process.cmdline() for process in alive] == []
    (ours / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"first": stage("echo 1 > first", "first")}}))
    assert "0 stages ran, 1 were" in run(ours).stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_until_dvcs_own_files_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """DVC writes dvc.lock and its rwlock in place: a Ctrl-C in the midst of one left half a file."""

    class Ended(Exception):
        pass

    def end(*_: Any) -> None:
        raise Ended

    written: list[str] = []

    def dump(*_: Any, **__: Any) -> None:
        signal.raise_signal(number)
        written.append("dvc.lock")

    before = signal.signal(number, end)
    try:
        monkeypatch.chdir(project(tmp_path / "ours", {"first": stage("echo 1 > first", "first")}))
        pipeline = Pipeline(Path())
        assert pipeline.begin("first") is not None
        Path("first").write_text("1\n")
        monkeypatch.setattr(type(pipeline.stages["first"]), "dump", dump)
        with pytest.raises(Ended):
            pipeline.end("first")
        assert written == ["dvc.lock"] and signal.getsignal(number) is end
        whole = json.dump
        monkeypatch.setattr(json, "dump", lambda *parts: (signal.raise_signal(number), whole(*parts)))
        with pytest.raises(Ended):
            pipeline._hold("first")
        rwlock = Path(".dvc/tmp/rwlock")
        assert "freezeasguard run first" in rwlock.read_text()
        with pytest.raises(Ended):
            pipeline.close()
        assert json.loads(rwlock.read_text()) == {"read": {}}
    finally:
        signal.signal(number, before)


def test_two_runs_at_once(tmp_path: Path) -> None:
    ours = project(tmp_path / "ours", SLOW)
    running = start(ours)
    shell = pid_of(ours)
    second = run(ours, check=False)
    assert second.returncode == 1 and "another `freezeasguard run` is at work" in second.stderr
    # and DVC itself keeps away from what a running stage writes
    serial = subprocess.run([*DVC, "repro"], cwd=ours, capture_output=True, text=True)
    assert serial.returncode != 0 and "is busy, it is being blocked by" in serial.stderr
    os.kill(shell, signal.SIGKILL)
    running.communicate(timeout=60)


def test_executors_are_files_and_mistakes_in_them_are_told(tmp_path: Path) -> None:
    assert executor_names() == ["gpus", "local", "slurm"]
    assert read_executor("slurm")["provider"]["kind"] == "SlurmProvider"
    with pytest.raises(FreezeAsGuardError, match="there is no executor 'slrm'; choose from gpus, local, slurm"):
        read_executor("slrm")
    own = tmp_path / "own.yaml"
    ours = project(tmp_path / "ours", cells(1))
    for text, told in (
        ("provider: {kind: NoProvider}", "provider.kind is 'NoProvider', which Parsl does not have"),
        ("no_such_thing: 1", "no_such_thing"),
        ("provider: {kind: LocalProvider, blocks: 2}", "blocks"),
    ):
        own.write_text(text)
        done = run(ours, "--executor", str(own), check=False)
        assert done.returncode == 1 and told in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_what_waits_for_what_is_dvcs_own_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project(tmp_path / "ours", cells(2)))
    pipeline = Pipeline(Path())
    assert pipeline.upstream["tables"] == {"score-0", "score-1"} and pipeline.upstream["train-0"] == set()
    assert list(pipeline.stages) == ["train-0", "score-0", "train-1", "score-1", "tables"]
    pipeline.close()


def test_last_words_of_a_progress_bar(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_words(log) == ""
    log.write_bytes(b"first line\nfine-tuning:  1%\rfine-tuning: 50%\r" + "übrig 99%".encode() + b"\r\n\n")
    assert last_words(log) == "übrig 99%"
    log.write_bytes(b"x" * 1000 + b"\n" + "ü".encode()[1:] + b"tail")
    assert last_words(log).endswith("tail")
