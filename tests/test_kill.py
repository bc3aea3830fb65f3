"""A stage killed midway, or on a full disk: nothing torn is left, and the next run goes on from its checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from freezeasguard.models.diffusion import stored_tensors
from freezeasguard.models.protected import Protected, write_for
from freezeasguard.settings.params import load_params
from freezeasguard.settings.profiles import write_profile
from freezeasguard.settings.resolve import write_settings

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A cell that is ready to be adapted, on made-up latents."""
    params = tmp_path / "params.yaml"
    write_profile("smoke", params)
    params.write_text(params.read_text().replace("steps: 3\n  batch_size: 4", "steps: 40\n  batch_size: 4"))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, 2, 8, 16, 16, generator=generator)
    words = torch.randn(8, 48, 96, generator=generator)
    folder = tmp_path / "data/latents/portraits"
    folder.mkdir(parents=True)
    save_file({"latents": latents, "text": words, "empty_text": words[0].clone()}, folder / "latents.safetensors")
    rows = [f"{i},{'illegal' if i < 4 else 'legal'},c{i},C,adaptation,{i}.png,a photo of C,{i}" for i in range(8)]
    header = "row,side,class,subject,part,path,caption,sha256"
    (folder / "index.csv").write_text("\n".join([header, *rows]) + "\n")
    model = tmp_path / "data/fetched/tiny-1.5"
    shutil.copytree(ROOT / "data/models/tiny-1.5", model)
    write_for(stored_tensors(model), tmp_path / "data/protected/portraits/full", Protected("full"))
    write_settings(load_params(params), tmp_path / "data/settings")
    return tmp_path


def adapt(project: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "stages.adapt", "portraits", "full", "tiny-1.5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=project, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)


def test_killed_adaptation_resumes_bit_for_bit(project: Path) -> None:
    out, checkpoints = project / "data/adapted/portraits/full", project / "data/checkpoints"
    assert adapt(project).wait() == 0
    whole = {side: load_file(out / f"{side}.safetensors") for side in ("illegal", "legal")}
    losses = json.loads((out / "illegal.json").read_text())["losses"]
    shutil.rmtree(out)

    process = adapt(project)
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("portraits-full-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(checkpoints.glob("portraits-full-*.pt")), "no checkpoint was written before the kill"
    assert not out.exists()

    assert adapt(project).wait() == 0
    for side, tensors in whole.items():
        again = load_file(out / f"{side}.safetensors")
        assert again.keys() == tensors.keys()
        assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert json.loads((out / "illegal.json").read_text())["losses"] == losses
    assert not list(checkpoints.glob("*.pt"))


@pytest.fixture
def small_disks(project: Path) -> Iterator[list[Path]]:
    """Two folders of the project, each on a disk of 2 MB."""
    folders = [project / "data/checkpoints", project / "data/adapted"]
    for folder in folders:
        folder.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "small", str(folder)]
        if (done := subprocess.run(mount, capture_output=True, text=True)).returncode:
            pytest.skip(f"needs the right to mount a small tmpfs: {done.stderr.strip()}")
    yield folders
    for folder in folders:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_told_in_one_line_and_the_run_goes_on_once_there_is_space(
    project: Path, small_disks: list[Path]
) -> None:
    out, params = project / "data/adapted/portraits/full", project / "params.yaml"
    params.write_text(params.read_text().replace("steps: 40\n", "steps: 3\n"))
    write_settings(load_params(params), project / "data/settings")

    def run() -> tuple[int, list[str]]:
        command = [sys.executable, "-m", "stages.adapt", "portraits", "full", "tiny-1.5"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
        return done.returncode, [line for line in done.stderr.splitlines() if "error" in line or "Traceback" in line]

    for disk in small_disks:  # where a checkpoint is saved, then where the tensors are
        code, errors = run()
        assert code == 1 and len(errors) == 1, errors
        assert errors[0].startswith("error: the disk is full (") and str(disk.relative_to(project)) in errors[0]
        assert not [path for path in (project / "data").rglob("*") if path.suffix in (".tmp", ".old")]
        assert not out.exists()
        subprocess.run(["mount", "-o", "remount,size=256m", disk], check=True)
    assert run() == (0, [])
    assert len(json.loads((out / "illegal.json").read_text())["losses"]) == 3
    assert {path.suffix for path in out.iterdir()} == {".json", ".safetensors"} and len(list(out.iterdir())) == 4
