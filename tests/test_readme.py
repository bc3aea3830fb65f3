"""The README's commands are the ones CI and the pipeline run."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from typer.testing import CliRunner

from freezeasguard.cli import cli
from freezeasguard.settings.mask import Mask

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_ci_calls_the_readmes_test_command() -> None:
    command = next(line.strip() for line in README.splitlines() if line.startswith("    pip") and "pytest" in line)
    packages = next(line.strip() for line in README.splitlines() if line.startswith("    apt-get"))
    said = (ROOT / ".ci/run").read_text().replace("pip install -q", "pip install")
    assert command in said and packages in said


def test_commands_of_the_readme_exist(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    for name in re.findall(r"`freezeasguard profile ([a-z][\w-]*)`", README):
        assert runner.invoke(cli, ["profile", name]).exit_code == 0
        assert (tmp_path / "params.yaml").is_file()
    assert runner.invoke(cli, ["cells"]).exit_code == 0
    assert "portraits (Table 2)" in runner.invoke(cli, ["check"]).output
    monkeypatch.chdir(ROOT)
    assert "vae_auc_ratio" in runner.invoke(cli, ["gates"]).output


def test_params_named_with_dash_s_exist() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key in re.findall(r"-S ([\w.]+)=", README):
        block = params
        for part in key.split("."):
            assert part in block, key
            block = block[part]


def test_every_test_that_the_method_names_exists() -> None:
    method = (ROOT / "stages/freezeasguard/METHOD.md").read_text()
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", method)
    assert len(named) > 15
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), (file, test)


def test_every_field_that_the_method_names_is_a_setting() -> None:
    table = (ROOT / "stages/freezeasguard/METHOD.md").read_text().split("### Readings")[1].split("### Where")[0]
    columns = [line.split("|")[5] for line in table.splitlines() if line.startswith("| ")]
    fields = {name for column in columns for name in re.findall(r"`(\w+)`", column)}
    assert fields and fields <= set(Mask.model_fields), fields - set(Mask.model_fields)
