"""What `freezeasguard run` and DVC add to a stage, by workers and stages; run with `pytest -m benchmark -s`."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

SLEEP_S = 5
DVC = [sys.executable, "-m", "dvc"]
RUN = [sys.executable, "-c", "from freezeasguard.cli import app; app()", "run"]


def project(folder: Path, n: int) -> Path:
    """n stages that sleep and write a line, each on its own."""
    folder.mkdir()
    (folder / "seed").write_text("0\n")
    do = f"sleep {SLEEP_S} && echo ${{item}} > out-${{item}}"
    listed = "".join(f"    - s{i}\n" for i in range(n))
    (folder / "dvc.yaml").write_text(
        f"stages:\n  cell:\n    foreach:\n{listed}    do:\n      cmd: {do}\n"
        "      deps:\n      - seed\n      outs:\n      - out-${item}\n"
    )
    for command in (["git", "init", "-q"], [*DVC, "init", "-q"], [*DVC, "config", "core.analytics", "false"]):
        subprocess.run(command, cwd=folder, check=True)
    return folder


def wall(command: list[str], folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


@pytest.mark.benchmark
@pytest.mark.parametrize(("n", "workers"), [(100, 8), (100, 32), (100, 128), (1000, 32), (1000, 128)])
def test_what_a_stage_costs_beside_its_own_work(n: int, workers: int, tmp_path: Path) -> None:
    folder = project(tmp_path / "project", n)
    took = wall([*RUN, "--jobs", str(workers)], folder)
    again = wall(RUN, folder)
    ideal = math.ceil(n / workers) * SLEEP_S
    print(
        f"\n{n} stages of {SLEEP_S} s on {workers} workers: {took:.1f} s, ideal {ideal} s, efficiency "
        f"{ideal / took:.2f}; added a stage {(took - ideal) / n:.3f} s; again, with nothing to do: {again:.1f} s"
    )
