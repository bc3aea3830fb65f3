"""What a worker does: a stage's command, as DVC would run it, with its words in a file of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def run_command(command: str, folder: str, environment: dict[str, str], log: str) -> int:
    """Run a stage's command in the project's folder; returns its exit status.

    Args:
        environment: what DVC adds to a stage's own; everything else is the worker's, such as the GPU it was given.
    """
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as words:
        shell = os.environ.get("SHELL") or "/bin/sh"
        own = {**os.environ, **environment}
        done = subprocess.run(
            [shell, "-c", command], cwd=folder, env=own, stdin=subprocess.DEVNULL, stdout=words, stderr=words
        )
    return done.returncode
