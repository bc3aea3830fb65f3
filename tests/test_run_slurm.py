"""`freezeasguard run` on a real Slurm, one node on this machine; run with `pytest -m slurm`, as root, after
`apt-get install -y slurm-wlm`."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from test_run import DVC, cells, kept, project, run, stage, wait_for

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
CONFIG = """
ClusterName=one
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d.log
SlurmctldPort=27817
SlurmdPort=27818
AccountingStorageType=accounting_storage/none
NodeName={host} CPUs={cpus} State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An executor's file for a Slurm of one node, which lives as long as the test."""
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        pytest.skip(f"needs {', '.join(missing)} (`apt-get install -y slurm-wlm`)")
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    conf.write_text(CONFIG.format(host=socket.gethostname(), folder=folder, cpus=os.cpu_count()))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    if subprocess.run(["munge", "-n"], capture_output=True).returncode:
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge")
        subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", "/usr/sbin/munged --force"], check=True)
    for daemon in ("slurmctld", "slurmd"):
        subprocess.run([daemon, "-f", conf], check=True)
    wait_for(lambda: "idle" in subprocess.run(["sinfo", "-h"], capture_output=True, text=True).stdout)
    own = yaml.safe_load(
        (Path(__file__).parent.parent / "stages/freezeasguard/running/executors/slurm.yaml").read_text()
    )
    own["provider"] |= {"worker_init": "", "walltime": "00:05:00", "scheduler_options": "", "max_blocks": 1}
    path = tmp_path / "one-node.yaml"
    path.write_text(yaml.safe_dump({**own, "address": "127.0.0.1", "available_accelerators": 0}))
    yield path
    subprocess.run(["scancel", "--user", "root"])
    for name in ("d.pid", "ctld.pid"):
        os.kill(int((folder / name).read_text()), signal.SIGTERM)
    time.sleep(1)


@pytest.mark.slurm
def test_a_cluster_leaves_what_a_serial_repro_leaves(slurm: Path, tmp_path: Path) -> None:
    serial, ours = (project(tmp_path / name, cells()) for name in ("serial", "ours"))
    subprocess.run([*DVC, "repro", "-q"], cwd=serial, check=True)
    assert "7 stages ran" in run(ours, "--executor", str(slurm)).stdout
    assert kept(ours) == kept(serial)
    assert "0 stages ran, 7 were" in run(ours, "--executor", str(slurm)).stdout


@pytest.mark.slurm
def test_a_stage_that_fails_on_the_cluster_is_told(slurm: Path, tmp_path: Path) -> None:
    more = {"bad": stage("echo $SLURM_JOB_ID > job; exit 4", "bad", "seed")}
    ours = project(tmp_path / "ours", cells(1, more))
    done = run(ours, "--executor", str(slurm), check=False)
    assert done.returncode == 1 and "bad: exit code 4" in done.stderr
    assert int((ours / "job").read_text()) > 0 and (ours / "tables").is_file()
