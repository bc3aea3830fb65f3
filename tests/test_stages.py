"""The commands: help for every argument, one line for an expected error, and nothing heavy before it is needed."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
import yaml

from freezeasguard.settings.profiles import write_profile

ROOT = Path(__file__).parent.parent
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def run_in(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_folder_is_the_dag() -> None:
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"} == set(STAGES)


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_every_argument_has_its_help(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    module = import_module(f"stages.{stage}")
    assert module.__doc__
    for name, parameter in inspect.signature(module.main).parameters.items():
        info = get_args(parameter.annotation)[1]
        assert info.help and info.help.endswith("."), name


def test_help_says_what_a_stage_does() -> None:
    done = run_in(ROOT, "-m", "stages.adapt", "--help")
    assert "The illegal and the legal user fine-tune the model of one arm." in done.stdout
    assert "An arm of the case" in done.stdout and "A case of params.yaml" in done.stdout


def test_bytecode_is_no_part_of_a_folder_that_a_stage_depends_on() -> None:
    compiled = "stages/freezeasguard/masks/__pycache__/mask.cpython-311.pyc"
    command = [sys.executable, "-m", "dvc", "check-ignore", compiled]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() == compiled


def test_missing_params_and_an_unknown_case_exit_with_one_line(tmp_path: Path) -> None:
    done = run_in(tmp_path, "-m", "stages.settings")
    assert done.returncode == 1 and "error: params.yaml is missing; run `freezeasguard profile tiny`" in done.stderr
    done = run_in(tmp_path, "-m", "stages.survey", "nobody")
    assert done.returncode == 1 and "data/settings/survey/nobody.json is missing" in done.stderr
    write_profile("smoke", tmp_path / "params.yaml")
    assert run_in(tmp_path, "-m", "stages.settings").returncode == 0
    done = run_in(tmp_path, "-m", "stages.survey", "nobody")
    assert done.returncode == 1 and "no 'nobody' for the stage survey; it has portraits" in done.stderr
    assert "Traceback" not in done.stderr


def test_importing_the_command_loads_nothing_heavy() -> None:
    heavy = ("torch", "diffusers", "mlflow", "pandas", "numpy")
    code = f"import sys, freezeasguard.cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("stage", ["settings", "fetch", "crawl", "caption", "split", "survey", "tables", "report"])
def test_stages_that_need_no_network_load_no_torch(stage: str) -> None:
    code = f"import sys; from stages import {stage}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("explicit", [True, False])
def test_survey_blurs_what_is_explicit(explicit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    survey = import_module("stages.survey")
    asked: dict[str, bool] = {}

    def spy(*_: object, blurred: bool) -> dict[str, object]:
        asked["blurred"] = blurred
        return {"in": 1, "kept": 1, "rejected": {}}

    monkeypatch.setattr(survey, "survey_domain", spy)
    monkeypatch.setattr(survey, "read_settings", lambda block, name: block(explicit=explicit))
    survey.main("portraits")
    assert asked == {"blurred": explicit}
