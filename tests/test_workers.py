"""No result depends on `workers`: a small case through its stages with one and with two, byte for byte."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from freezeasguard.commands import machine
from freezeasguard.settings.profiles import update_params, write_cells, write_profile

ROOT = Path(__file__).parent.parent
CASE, MODEL, ARMS = "portraits", "tiny-1.5", ("pretrained", "full", "freezeasguard")
RESULTS = ("latents", "finetuned", "protected", "adapted", "images", "reference", "scores")


def stage(name: str, *arguments: str) -> None:
    """The stage's own command, in this process and folder."""
    import_module(f"stages.{name}").main(*arguments)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A case up to its split images."""
    monkeypatch.syspath_prepend(ROOT)
    (tmp_path / "data").mkdir()
    for name in ("data/models", "data/cases", "data/edits", "data/weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    params = Path("params.yaml")
    write_profile("smoke", params)
    cases = yaml.safe_load(params.read_text())["cases"]
    cases[CASE]["arms"] = list(ARMS)
    update_params(params, {"cases": cases})
    write_cells(params)
    for name in ("settings", "crawl", "caption", "split", "fetch"):
        stage(name, *{"settings": [], "fetch": [MODEL]}.get(name, [CASE]))
    return tmp_path


def run_case(workers: int) -> dict[str, bytes]:
    """Every file that the case's stages write, by its path."""
    update_params(Path("params.yaml"), {"workers": workers})
    assert machine().workers == workers
    stage("encode", CASE, CASE, MODEL)
    stage("relearn", CASE, MODEL)
    stage("reference", CASE, CASE)
    for arm in ARMS[1:]:
        stage("protect", CASE, arm, MODEL)
    for arm in ARMS:
        stage("adapt", CASE, arm, MODEL)
        stage("generate", CASE, arm, MODEL)
    stage("score", CASE, CASE)
    folders = [Path("data") / name / CASE for name in RESULTS]
    found = {str(p): p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()}
    for folder in folders:
        shutil.rmtree(folder)
    return found


def test_one_and_two_workers_write_the_same_bytes(project: Path) -> None:
    one, two = run_case(1), run_case(2)
    assert one.keys() == two.keys() and {path.split("/")[1] for path in one} >= set(RESULTS)
    assert [path for path in one if one[path] != two[path]] == []
