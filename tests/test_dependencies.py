"""What a stage depends on is true by construction: code by the import closure, settings by the one file it reads."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from freezeasguard.arms import Arm
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.protections.registry import METHODS
from freezeasguard.settings.code import PLUMBING, closure, code_of, digest, imports, module_file
from freezeasguard.settings.params import parse_params
from freezeasguard.settings.profiles import profile_text, write_profile
from freezeasguard.settings.resolve import resolved

ROOT = Path(__file__).parent.parent
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
COMMANDS = sorted(set(STAGES) - {"settings", "pretrain"})
LIBRARY = "stages/freezeasguard"


# --- code -------------------------------------------------------------------------------------------


def settings_of(project: Path) -> dict[str, str]:
    """The settings files that the stage `settings` of a copy of the code writes, by name."""
    command = [sys.executable, "-m", "stages.settings"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = project / "data/settings"
    return {str(path.relative_to(folder).with_suffix("")): path.read_text() for path in folder.rglob("*.json")}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with the profile tiny."""
    folder = tmp_path_factory.mktemp("code")
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    write_profile("tiny", folder / "params.yaml")
    return folder


@pytest.fixture(scope="module")
def before(project: Path) -> dict[str, str]:
    return settings_of(project)


CASES = ("portraits", "artworks", "explicit")
LEARNED = ("freezeasguard", "freezeasguard_paper", "freezeasguard_official", "freezeasguard-element")
MASKS = {f"protect/{case}-{arm}" for case in CASES for arm in LEARNED}
MASKS |= {f"protect/{case}-freezeasguard-70" for case in CASES[1:]}
IMMAS, ANCHORS, COMPONENTS = (
    {f"protect/{case}-{method}" for case in CASES} for method in ("imma", "anchored", "freeze_outside_attention")
)
USERS = {f"adapt/{case}-{arm.name}" for case, arm in parse_params(yaml.safe_load(profile_text("tiny")), Path()).cells}
RELEARN, GENERATE = {f"relearn/{case}" for case in CASES}, {f"generate/{case}" for case in CASES}
SCORING = {f"{stage}/{case}" for stage in ("reference", "score") for case in CASES}
CHANGE = "\n\nCHANGED = 1\n"


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("protections/imma.py", IMMAS),
        ("models/attention.py", IMMAS | ANCHORS | COMPONENTS),  # which projections there are
        ("masks/bilevel.py", MASKS),
        ("users/training.py", USERS | RELEARN | IMMAS | ANCHORS),
        ("masks/memory.py", set()),  # counts, before anything runs
        ("users/compliant.py", USERS | RELEARN),
        ("users/unfreeze.py", set()),  # no cell of the profile has such a user
        ("users/registry.py", set()),  # a new attacker is a line here
        ("models/sampling.py", GENERATE | ANCHORS),
        ("data/sources/figures.py", {"crawl/portraits"}),
        ("data/sources/registry.py", set()),
        ("data/split.py", {f"{stage}/{case}" for stage in ("split", "encode", "survey") for case in CASES}),
        ("scores/nudenet.py", {"reference/explicit", "score/explicit", "tables", "figures", "report", "track"}),
        ("scores/networks/clip.py", SCORING),
        ("scores/registry.py", {"tables", "figures", "report", "track"}),  # a new score is a line here
        ("protections/registry.py", {"tables", "figures", "report", "track"}),
        ("reports/tables.py", {"tables", "report"}),
        ("reports/track.py", {"track"}),
        ("settings/origins.py", set()),
        ("files.py", set()),
        ("../adapt.py", USERS),
    ],
)
def test_an_edit_of_code_reaches_the_stages_that_run_it(
    project: Path, before: dict[str, str], file: str, expected: set[str]
) -> None:
    path = project / LIBRARY / file
    text = path.read_text()
    try:
        path.write_text(text + CHANGE)
        after = settings_of(project)
    finally:
        path.write_text(text)
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == expected


def test_comments_layout_and_docstrings_reach_no_stage(tmp_path: Path) -> None:
    plain = '"""A module."""\n\n\ndef f(x: int) -> int:\n    """Twice x."""\n    return 2 * x\n'
    told = '"""Other words."""\n\n# why\ndef f(x: int) -> int:\n    # because\n    return (2 *\n            x)\n'
    other = plain.replace("2 * x", "3 * x")
    digests = []
    for i, text in enumerate((plain, told, other)):
        (tmp_path / f"{i}.py").write_text(text)
        digests.append(digest(tmp_path / f"{i}.py"))
    assert digests[0] == digests[1] != digests[2]


def test_the_closure_sees_imports_within_functions_and_not_those_for_type_checkers(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from freezeasguard.models.latents import CaseData\n"
        "def f():\n    from freezeasguard.models import sampling\n"
    )
    names = {f"{path.parent.name}/{path.name}" for path in imports(module)}
    assert names == {"models/sampling.py", "models/__init__.py", "freezeasguard/__init__.py"}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_brings_its_own_module_and_what_it_stands_on(name: str) -> None:
    own = module_file(METHODS[name].import_path)
    code = code_of("protect", (METHODS[name].import_path,))
    assert {path.name for path in closure([own]) if "protections" in str(path)} >= {own.name}
    assert f"freezeasguard/protections/{own.name}" in code and "freezeasguard/models/protected.py" in code
    assert ("freezeasguard/masks/bilevel.py" in code) == (METHODS[name].block == "mask")


def test_a_module_of_ones_own_is_watched_and_an_absent_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "guard_of_mine.py").write_text("from freezeasguard.masks import mask\n")
    monkeypatch.syspath_prepend(tmp_path)
    code = code_of("protect", ("guard_of_mine",))
    assert code["guard_of_mine.py"] == digest(tmp_path / "guard_of_mine.py") and "freezeasguard/masks/mask.py" in code
    for absent in ("nobody", "nobody.there", "freezeasguard.nobody"):
        with pytest.raises(FreezeAsGuardError, match=f"no module '{absent}'"):
            code_of("protect", (absent,))


def test_plumbing_is_there_with_its_reason() -> None:
    assert all((ROOT / "stages" / file).is_file() and reason for file, reason in PLUMBING.items())


def test_every_cell_names_the_code_of_its_own_method_and_user() -> None:
    values = yaml.safe_load(profile_text("tiny")) | {}
    values["adapt"]["attacker"] = "unfreeze"
    found = {name: modules for name, _, modules in resolved(parse_params(values, Path("params.yaml")))}
    assert found["protect/artworks-uce"] == (Arm.parse("uce").kind.import_path,)
    assert found["adapt/artworks-uce"] == ("freezeasguard.users.unfreeze",)
    assert found["relearn/artworks"] == ("freezeasguard.users.compliant",)  # the simulated user honours no mask
    assert found["crawl/artworks"] == ("freezeasguard.data.sources.illustrators",)


def test_the_library_beside_the_stages_is_the_one_that_runs(project: Path) -> None:
    """A queued experiment runs its own commit's code, though another copy is installed."""
    code = "import stages, freezeasguard; print(freezeasguard.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)
    assert Path(done.stdout.strip()) == project / LIBRARY / "__init__.py"


# --- settings and data --------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", COMMANDS)
def test_a_stage_reads_settings_from_its_own_watched_file_alone(stage: str) -> None:
    text = (ROOT / "stages" / f"{stage}.py").read_text()
    read = set(re.findall(r'read_settings\(\w+, f?"(\w+)/', text)) | set(re.findall(r'read_reported\("(\w+)"\)', text))
    assert read == {stage} and "load_params" not in text and "params.yaml" not in text
    deps = STAGES[stage].get("do", STAGES[stage])["deps"]
    watched = {Path(dep).relative_to("data/settings").parts[0] for dep in deps if dep.startswith("data/settings/")}
    assert {Path(name).stem for name in watched} == read


@pytest.mark.parametrize("stage", COMMANDS)
def test_every_folder_that_a_command_names_is_a_dependency_or_an_output(stage: str) -> None:
    tree = ast.parse((ROOT / "stages" / f"{stage}.py").read_text())
    named = {
        f"{node.left.id.lower()}/{node.right.value}"
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp)
        and isinstance(node.left, ast.Name)
        and node.left.id in ("DATA", "REPORTS")
        and isinstance(node.right, ast.Constant)
    }
    block = STAGES[stage].get("do", STAGES[stage])
    outs = [next(iter(out)) if isinstance(out, dict) else out for out in block["outs"]]
    listed = [*block["deps"], *outs]
    if stage == "protect":  # named by the cell, as data/cells.json lists it
        cells = json.loads((ROOT / "data/cells.json").read_text())["protected"].values()
        listed += [cell[key] for cell in cells for key in ("latents", "finetuned")]
    kept = {"data/downloads"}  # between runs: what a source fetched, and captions made so far; keyed by their inputs
    for folder in named - kept:
        assert any(path == folder or path.startswith(f"{folder}/") for path in listed), folder


def test_the_map_is_short() -> None:
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 300
