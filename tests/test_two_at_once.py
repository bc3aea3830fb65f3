"""Two `dvc repro` in one folder: each does its work or is told in a line who is at it, and nothing is torn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from project import copy_project, repro

TARGET = "split@portraits"


def test_two_repros_at_once_tear_nothing(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    command = [sys.executable, "-m", "dvc", "repro", TARGET]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, cwd=project, **pipes) for _ in range(2)]
    for process in running:
        out, errors = process.communicate(timeout=300)
        assert "Traceback" not in errors
        told = [line for line in errors.splitlines() if line.startswith("ERROR:")]
        busy = "is busy, it is being blocked by" in errors or "Unable to acquire lock" in errors
        assert (process.returncode == 0 and not told) or (len(told) == 1 and busy), f"{out}\n{errors}"
    repro(project, TARGET)
    assert repro(project, TARGET) == []
    listed = (project / "data/splits/portraits/split.csv").read_text().splitlines()
    assert len(listed) == 1 + len(list((project / "data/raw/portraits").rglob("*.png")))
    assert not [path for path in (project / "data").rglob("*") if path.suffix in (".tmp", ".old")]
