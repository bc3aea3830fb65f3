"""What killed processes leave: no folder's hash changes for it, the next stage removes it, and no child works on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import folder_atomically, remove_leftovers, write_atomically
from freezeasguard.workers import die_with, run_side_by_side
from processes import hear_ctrl_c

ROOT = Path(__file__).parent.parent
STAGE = """
import os, time
from pathlib import Path
from freezeasguard.commands import run
from freezeasguard.files import folder_atomically
from freezeasguard.workers import run_side_by_side

def main() -> None:
    with folder_atomically(Path("data/adapted/case/full")) as out:
        def task(side):
            def work():
                (out / side).write_text(str(os.getpid()))
                time.sleep(60)
            return work
        run_side_by_side({side: task(side) for side in ("illegal", "legal")}, 2, "cpu")

run(main)
"""
"""A stage with two children that write and wait."""


@pytest.fixture
def dead() -> int:
    """A number that no process has."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


# --- files ------------------------------------------------------------------------------------------


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path, dead: int) -> None:
    gone = [f"images/case/.full.{dead}.tmp", f"checkpoints/.a-full-legal.pt.{dead}.tmp", f".own.{os.getpid()}.tmp"]
    kept = [f"images/case/.random.{os.getppid()}.tmp", "images/case/.hidden.tmp", "images/case/full.1.tmp", ".1.tmp"]
    for name in (*gone[1:], *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    (tmp_path / gone[0] / "illegal").mkdir(parents=True)
    (tmp_path / gone[0] / "illegal/.1.png.3.tmp").touch()
    remove_leftovers(tmp_path, tmp_path / "absent")
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == set(kept)
    assert not (tmp_path / gone[0]).exists()


def test_what_a_killed_process_was_about_to_replace_goes_back(tmp_path: Path, dead: int) -> None:
    for name in ("full", f".full.{dead}.old", f".random.{dead}.old", f".random.{dead}.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "from").write_text(name)
    remove_leftovers(tmp_path)
    assert {path.name: (path / "from").read_text() for path in tmp_path.iterdir()} == {
        "full": "full",
        "random": f".random.{dead}.old",
    }


def test_temporary_names_are_those_that_are_swept(tmp_path: Path) -> None:
    """Half-written, as if the process had died here: the sweep of a next one with another number."""
    with folder_atomically(tmp_path / "a-b.c") as folder, write_atomically(tmp_path / "x.json") as file:
        file.touch()
        found = sorted(path.name for path in tmp_path.iterdir())
        assert found == [f".a-b.c.{os.getpid()}.tmp", f".x.json.{os.getpid()}.tmp"]
        command = "import sys, pathlib, freezeasguard.files as f; f.remove_leftovers(pathlib.Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", command, str(tmp_path)], check=True)
        assert folder.exists() and file.exists(), "a living process's files are left alone"
        subprocess.run(
            [sys.executable, "-c", command.replace("; ", "; f._is_running = lambda pid: False; "), str(tmp_path)],
            check=True,
        )
        assert not folder.exists() and not file.exists()
        folder.mkdir()
        file.touch()


def test_a_leftover_changes_no_folders_hash(tmp_path: Path, dead: int) -> None:
    from dvc.repo import Repo

    repo = Repo.init(str(tmp_path), no_scm=True)
    shutil.copyfile(ROOT / ".dvcignore", tmp_path / ".dvcignore")
    folder = tmp_path / "data/images/portraits"
    (folder / "full").mkdir(parents=True)
    (folder / "full/index.csv").write_text("file\n")

    def digest() -> str:
        (stage,) = Repo(str(tmp_path)).add(str(folder))
        return stage.outs[0].hash_info.value

    before = digest()
    for name in (f".full.{dead}.tmp", f".random.{dead}.old"):
        (folder / name).mkdir()
        (folder / name / "half.png").write_text("half")
    (folder / f".index.csv.{dead}.tmp").write_text("half")
    assert digest() == before
    (folder / "full/index.csv").write_text("file,side\n")
    assert digest() != before
    repo.close()


# --- processes --------------------------------------------------------------------------------------


def start(folder: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """The stage and its two children, once both have written."""
    with (folder / "stderr").open("wb") as errors:
        how: dict[str, Any] = {"start_new_session": True, "preexec_fn": hear_ctrl_c}
        stage = subprocess.Popen([sys.executable, "-c", STAGE], cwd=folder, stderr=errors, **how)
    here = folder / f"data/adapted/case/.full.{stage.pid}.tmp"
    assert wait_for(lambda: len([p for p in here.glob("*") if p.read_text()]) == 2)
    return stage, [int((here / side).read_text()) for side in ("illegal", "legal")]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_children_end_with_the_stage_however_it_ends(number: signal.Signals, tmp_path: Path) -> None:
    stage, children = start(tmp_path)
    os.kill(stage.pid, number)
    assert stage.wait(20) != 0
    assert wait_for(lambda: not any(map(is_running, children)), 5)
    left = [path.name for path in (tmp_path / "data/adapted/case").iterdir()]
    assert left == ([f".full.{stage.pid}.tmp"] if number == signal.SIGKILL else [])
    assert "Traceback" not in (tmp_path / "stderr").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_child_is_told_in_a_line_and_ends_the_other(number: signal.Signals, tmp_path: Path, dead: int) -> None:
    (tmp_path / f"data/adapted/case/.uce.{dead}.tmp").mkdir(parents=True)  # of an earlier kill: swept at the start
    stage, children = start(tmp_path)
    os.kill(children[1], number)
    assert stage.wait(20) == 1 and not any(map(is_running, children))
    (line,) = (tmp_path / "stderr").read_text().splitlines()
    assert line.startswith(f"error: the process of 'legal' was killed (exit code -{number.value}); if memory ran out")
    assert not list((tmp_path / "data/adapted/case").iterdir())


def test_a_task_that_fails_leaves_nothing_half_written_by_the_other(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"

    def writes() -> None:
        with write_atomically(path) as temporary:
            temporary.write_text("half")
            time.sleep(60)

    def fails() -> None:
        assert wait_for(lambda: bool(list(tmp_path.iterdir())))
        raise FreezeAsGuardError("the disk is full")

    with pytest.raises(FreezeAsGuardError, match="the disk is full"):
        run_side_by_side({"illegal": fails, "legal": writes}, 2, "cpu")
    assert not list(tmp_path.iterdir())


def test_a_stage_ends_with_a_killed_dvc(tmp_path: Path) -> None:
    """Even in the seconds in which it imports: a stage that DVC started watches it from its first line."""
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', sys.argv[1]]).pid, flush=True)"
    stage = "import stages, time; open('ready', 'w').close(); time.sleep(60)"
    environment = {**os.environ, "DVC_STAGE": "adapt", "PYTHONPATH": str(ROOT)}
    waiting = f"{code}; import time; time.sleep(60)"
    dvc = subprocess.Popen(
        [sys.executable, "-c", waiting, stage], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert dvc.stdout is not None
    pid = int(dvc.stdout.readline())
    assert wait_for(lambda: (tmp_path / "ready").exists())
    dvc.kill()
    dvc.wait()
    assert wait_for(lambda: not is_running(pid), 5)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_who_watches_a_parent_that_is_gone_already_ends_too(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without Linux's prctl."""
    monkeypatch.setattr(sys, "platform", platform)
    parent = os.getpid()
    if (child := os.fork()) == 0:
        die_with(parent + 1, signal.SIGKILL)
        time.sleep(5)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_no_child_writes_on_once_the_caller_cleans_up(tmp_path: Path) -> None:
    def fail() -> None:
        while not (out / "busy0").exists():
            time.sleep(0.01)
        raise FreezeAsGuardError("no")

    def write() -> None:
        for i in range(100_000):
            out.mkdir(exist_ok=True)
            (out / f"busy{i}").touch()

    with pytest.raises(FreezeAsGuardError, match="^no$"), folder_atomically(tmp_path / "full") as out:
        run_side_by_side({"a": fail, "b": write}, 2, "cpu")
    assert not list(tmp_path.iterdir())
