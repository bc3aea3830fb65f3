"""The warm start: a forked stage is what a fresh one would be, and it and its command die together."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from processes import hear_ctrl_c, ignore_ctrl_c

Process = subprocess.Popen[str]
ROOT = Path(__file__).parent.parent
STAGE = """
import os, sys, time
from freezeasguard import greeting
told = [*sys.argv[1:], os.getcwd(), os.environ.get("COLOUR"), os.getpid(), "warmed" in sys.modules]
print(greeting.WORD, *told, flush=True)
print("told", file=sys.stderr)
if sys.argv[1] == "sleep":
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
if sys.argv[1] == "fail":
    raise SystemExit(3)
if sys.argv[1] == "raise":
    raise RuntimeError("odd")
"""
SERVER = """
import sys, time
sys.path.insert(0, "stages")
from freezeasguard import warm
sys.path.pop(0)
warm.PACKAGES, warm.IDLE_S = ("warmed",), float(sys.argv[1])
sys.argv[1:] = [str(warm._address())]
warm.serve()
"""


def environment(project: Path) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}  # changes in a test
    return {
        **inherited,
        "DVC_STAGE": "adapt",
        "PYTHONPATH": str(project / "packages"),
        "TMPDIR": os.readlink(project / "tmp"),
    }


def start(project: Path, *arguments: str, begin: Callable[[], object] = hear_ctrl_c, **more: str) -> Process:
    command = [sys.executable, "-m", "stages.adapt", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=project, env={**environment(project), **more}, preexec_fn=begin, **pipes)


def sleeping(project: Path, begin: Callable[[], object] = hear_ctrl_c) -> tuple[Process, list[int]]:
    """A command, and its stage's process and that one's child, once both are at work."""
    process = start(project, "sleep", begin=begin)
    assert process.stdout
    return process, [int(process.stdout.readline().split()[-2]), int(process.stdout.readline())]


def wait_until(condition: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Ended; a zombie counts, as whoever inherits it may be slow to bury it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A project whose one stage says what it sees."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "stages/adapt.py").write_text(STAGE)
    (tmp_path / "stages/freezeasguard/greeting.py").write_text('WORD = "hello"\n')
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/warmed.py").touch()
    with tempfile.TemporaryDirectory() as short:  # a socket's path has about a hundred characters at most
        (tmp_path / "tmp").symlink_to(short)
        yield tmp_path


@pytest.fixture
def server(project: Path) -> Iterator[subprocess.Popen[bytes]]:
    how: dict[str, Any] = {"cwd": project, "env": environment(project), "preexec_fn": ignore_ctrl_c}
    process = subprocess.Popen([sys.executable, "-c", SERVER, "30"], **how)
    wait_until(lambda: list((project / "tmp").glob("freezeasguard-*/*")))
    yield process
    process.kill()
    process.wait()


def run(project: Path, *arguments: str, **more: str) -> tuple[list[str], str, int]:
    process = start(project, *arguments, **more)
    out, told = process.communicate(timeout=60)
    return out.split(), told, process.returncode


def test_a_warm_stage_is_what_a_fresh_one_would_be(project: Path, server: subprocess.Popen[bytes]) -> None:
    cold, told, code = run(project, "a", "b c", FREEZEASGUARD_WARM="0")
    warm, told_warm, code_warm = run(project, "a", "b c")
    assert (cold[-1], warm[-1]) == ("False", "True")
    assert cold[:-2] == warm[:-2] == ["hello", "a", "b", "c", str(project), "None"]
    assert (told, code) == (told_warm, code_warm) == ("told\n", 0)
    assert run(project, "fail")[2] == 3
    out, told, code = run(project, "raise")
    assert code == 1 and told.endswith("RuntimeError: odd\n") and out[-1] == "True"


def test_an_edit_of_the_code_is_seen(project: Path, server: subprocess.Popen[bytes]) -> None:
    assert run(project, "a")[0][0] == "hello"
    (project / "stages/freezeasguard/greeting.py").write_text('WORD = "good evening"\n')
    assert run(project, "a")[0][:2] == ["good", "evening"]


def test_another_environment_or_set_of_packages_is_not_served(project: Path, server: subprocess.Popen[bytes]) -> None:
    own = {"FREEZEASGUARD_WARM": "1"}
    assert run(project, "a", **own)[0][-1] == "True"
    out = run(project, "a", COLOUR="blue")[0]
    assert out[-1] == "False" and "blue" in out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stage_dies_with_its_command(project: Path, server: subprocess.Popen[bytes], number: int) -> None:
    process, pids = sleeping(project)
    assert process.pid not in pids
    process.send_signal(number)
    assert process.wait(20) == (1 if number == signal.SIGINT else -number)  # Python turns an interrupt into a traceback
    wait_until(lambda: all(gone(pid) for pid in pids))
    assert run(project, "a")[0][-1] == "True"  # the server lives on


def test_what_no_ctrl_c_reaches_passes_none_on(project: Path, server: subprocess.Popen[bytes]) -> None:
    process, pids = sleeping(project, begin=ignore_ctrl_c)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None and not any(map(gone, pids))
    process.kill()
    assert process.wait(20) == -signal.SIGKILL


def test_a_command_dies_as_its_stage_did(project: Path, server: subprocess.Popen[bytes]) -> None:
    process, pids = sleeping(project)
    os.kill(pids[0], signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    wait_until(lambda: gone(pids[1]))


def test_a_stage_whose_server_is_killed_fails_and_leaves_nothing(
    project: Path, server: subprocess.Popen[bytes]
) -> None:
    process, pids = sleeping(project)
    server.kill()
    assert process.wait(20) == 1
    wait_until(lambda: all(gone(pid) for pid in pids))
    assert run(project, "a", PATH="/usr/bin")[0][-1] == "False"  # cold again


def test_a_server_without_work_ends_and_takes_its_socket_along(project: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVER, "0.5"], cwd=project, env=environment(project))
    assert process.wait(20) == 0
    assert not list((project / "tmp").glob("freezeasguard-*/*"))


def test_a_folder_that_others_may_write_is_not_trusted(project: Path, server: subprocess.Popen[bytes]) -> None:
    (folder,) = (project / "tmp").iterdir()
    folder.chmod(0o777)
    assert run(project, "a")[0][-1] == "False"
