"""A copy of the project in a folder of its own, and `dvc repro` in it as a subprocess."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from freezeasguard.settings.profiles import write_profile

ROOT = Path(__file__).parent.parent


def run(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def ran(output: str) -> list[str]:
    """The names of the stages that ran, of what DVC printed."""
    return re.findall(r"Running stage '([^']+)'", output)


def dvc(folder: Path, *arguments: str, **environment: str) -> str:
    return run([sys.executable, "-m", "dvc", *arguments], folder, **environment)


def repro(folder: Path, *targets: str, **environment: str) -> list[str]:
    """The names of the stages that ran."""
    return ran(dvc(folder, "repro", *targets, **environment))


def copy_project(folder: Path) -> Path:
    """What git tracks, without tests and results but the study's, with the profile smoke."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.split("\0"):
        result = name.startswith("reports/") and not name.startswith("reports/study/")
        if name and not (result or name.startswith("tests/") or name == "dvc.lock") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    run(["git", "init", "-q"], folder)
    write_profile("smoke", folder / "params.yaml")
    return folder


def commit(folder: Path, message: str = "state") -> None:
    """DVC's experiments start from a commit."""
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    run(["git", "add", "-A"], folder)
    run(["git", *who, "commit", "-qm", message], folder)
