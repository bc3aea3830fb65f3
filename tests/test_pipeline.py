"""The real thing: `dvc repro` of the smoke profile as a subprocess, twice, then with one changed value."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from project import copy_project, repro, run

ARMS = ("pretrained", "uce-before", "full", "uce", "freezeasguard", "random")
BLIND_TO_RHO = ARMS[:4]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_project(tmp_path_factory.mktemp("project"))


def test_smoke_runs_once_then_only_what_changed(project: Path) -> None:
    first = repro(project)
    assert {f"generate@portraits-{arm}" for arm in ARMS} <= set(first) and "pretrain" not in first
    with (project / "reports/tables/table2.csv").open() as file:
        rows = list(csv.reader(file))
    assert [row[:2] for row in rows[1:]] == [
        [arm, side]
        for arm in ("Pre-trained model", "UCE before fine-tuning", "Full FT", "UCE", "FG-30%", "R-30%")
        for side in ("illegal", "legal")
    ]
    assert "with zeroed signal" in (project / "reports/mask_diagnostics.md").read_text()
    assert (project / "reports/index.html").is_file() and (project / "reports/figures/samples-portraits.png").is_file()
    for arm in ("freezeasguard", "random"):
        protected = json.loads((project / f"data/protected/portraits/{arm}/protected.json").read_text())
        assert len(protected["frozen"]) == round(0.3 * 686)

    assert repro(project) == []

    params = project / "params.yaml"
    params.write_text(params.read_text().replace("rho: 0.3", "rho: 0.5"))
    again = repro(project)
    cells = [f"{stage}@portraits-{arm}" for stage in ("adapt", "generate") for arm in ARMS[4:]]
    at_the_end = {"score@portraits", "tables", "mask_diagnostics", "figures", "report", "track"}
    expected = {"learn_mask@portraits", "random_freeze@portraits", *cells, *at_the_end}
    assert set(again) == expected and len(again) == len(expected)

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("freezeasguard")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    names = sorted(run.info.run_name for run in runs)
    # Arms that do not depend on rho keep their one run; the two others have one a value.
    assert names == sorted([f"portraits-{arm}" for arm in (*BLIND_TO_RHO, *ARMS[4:], *ARMS[4:])])

    diff = run([sys.executable, "-m", "dvc", "metrics", "show"], project)
    assert "freezeasguard.json" in diff

    # Tracking once more logs nothing new.
    out = run([sys.executable, "-m", "stages.track"], project)
    assert "0 runs logged, 6 known" in out

    # Going back restores every cell from DVC's run cache: nothing trains again.
    params.write_text(params.read_text().replace("rho: 0.5", "rho: 0.3"))
    assert [name for name in repro(project) if name.partition("@")[0] in ("learn_mask", "adapt", "generate")] == []
