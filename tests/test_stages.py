"""The wiring: dvc.yaml names what a stage imports; params.yaml is checked; bad input is told."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.settings.params import (
    check_cells,
    load_params,
    parse_params,
    profile_names,
    profile_text,
    split_arm,
    write_cells,
    write_profile,
)

ROOT = Path(__file__).parent.parent
COMMON = {"stage.py", "errors.py", "files.py", "config.py", "models.py", "workers.py"}
"""Shared plumbing: an edit there, or in what it alone imports, changes no result."""


def imported_modules(path: Path, seen: set[Path]) -> set[Path]:
    """The modules of the library that `path` imports, and theirs; neither COMMON nor what only COMMON imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            file = ROOT / "stages" / (name.replace(".", "/") + ".py")
            if not name.startswith("freezeasguard") or file.name in COMMON:
                continue
            if file.is_file() and file not in seen:
                seen.add(file)
                imported_modules(file, seen)
    return seen


STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def check_code_deps(deps: list[str], names: list[str]) -> None:
    """Every imported module is named or in a named folder, once; nothing is named without being imported."""
    files = [ROOT / "stages" / f"{name}.py" for name in names]
    modules = {file for start in files for file in imported_modules(start, set())} | set(files)
    imported = {str(module.relative_to(ROOT)) for module in modules}
    code = [dep for dep in deps if dep.startswith("stages/") and not dep.endswith(".csv")]
    folders = [dep for dep in code if not dep.endswith(".py")]
    inside = {folder: {module for module in imported if module.startswith(f"{folder}/")} for folder in folders}
    assert all(inside.values()), inside
    assert sorted(set(code) - set(folders)) == sorted(imported - set().union(*inside.values()))
    assert len(code) == len(set(code))


@pytest.mark.parametrize("name", sorted(set(STAGES) - {"protect_sweep"}))
def test_dvc_deps_name_every_module_that_the_stage_imports(name: str) -> None:
    check_code_deps(STAGES[name].get("do", STAGES[name])["deps"], [name])


def test_protect_sweep_depends_on_every_method_that_it_runs() -> None:
    check_code_deps(STAGES["protect_sweep"]["do"]["deps"], ["learn_mask", "random_freeze", "uce", "imma"])


def test_bytecode_is_no_part_of_a_folder_that_a_stage_depends_on() -> None:
    compiled = "stages/freezeasguard/masks/__pycache__/mask.cpython-311.pyc"
    command = [sys.executable, "-m", "dvc", "check-ignore", compiled]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() == compiled


@pytest.mark.parametrize("name", profile_names())
def test_profiles_are_valid(name: str) -> None:
    params = parse_params(yaml.safe_load(profile_text(name)), Path(name))
    assert params.profile == name


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rho", 1.5, "rho is 1.5"),
        ("rho", -0.1, "rho is -0.1"),
        ("rhoo", 0.3, "rhoo is not a key"),
        ("mask.preset", "mine", "mask.preset is 'mine'"),
        ("mask.temprature", 0.2, "mask.temprature is not a key"),
        ("adapt.steps", "many", "adapt.steps is 'many'"),
        ("cases.portraits.domain", "faces", "cases.portraits.domain is 'faces'"),
        ("cells", {}, "cells is not a key"),
    ],
)
def test_bad_params_are_named(key: str, value: object, said: str) -> None:
    values = yaml.safe_load(profile_text("smoke"))
    *path, last = key.split(".")
    block = values
    for part in path:
        block = block[part]
    block[last] = value
    with pytest.raises(FreezeAsGuardError, match="params.yaml") as error:
        parse_params(values, Path("params.yaml"))
    assert said in str(error.value)


def test_cells_command_derives_the_sweep(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(profile_text("smoke").replace("sweep: []", "sweep:\n    - 10"))
    write_cells(path)
    params = load_params(path)
    check_cells(params, tmp_path / "data/cells.json")
    assert params.arms("portraits")[-2:] == ["freezeasguard-10", "random-10"]
    assert params.arm_rho("random-10") == 0.1 and params.arm_rho("random") == params.rho
    assert params.sweep_cells["portraits-random-10"].stage == "random_freeze"


def test_an_arm_of_a_sweep_runs_again_only_where_what_it_is_made_from_changed(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    own = "sweep: [10]\n    granularities: [row]\n    controls: [attention, one_shot]\n    adapt_steps: 2"
    path.write_text(profile_text("smoke").replace("sweep: []", own).replace("[uce]", "[uce, imma]"))
    found = {arm.arm: (arm.block, arm.also) for arm in load_params(path).sweep_cells.values()}
    assert found == {
        "uce": ("uce", "cases.portraits"),
        "imma": ("imma", "seed"),
        "freezeasguard-10": ("mask", "seed"),
        "random-10": ("seed", "seed"),
        "freezeasguard-row": ("mask", "rho"),
        "random-row": ("seed", "rho"),
        "attention": ("seed", "rho"),
        "one_shot": ("mask", "rho"),
    }


def test_cells_that_the_cases_have_outgrown_are_told(tmp_path: Path) -> None:
    path, cells = tmp_path / "params.yaml", tmp_path / "data/cells.json"
    write_profile("smoke", path)
    check_cells(load_params(path), cells)
    for old, new, said in (
        ("sweep: []", "sweep: [10]", "cells does not match .* portraits-freezeasguard-10"),
        ("sweep: []", "adapt_lr: 0.1", "cells does not match .* portraits-freezeasguard"),
        ("baselines: [uce]", "baselines: []", "cells does not match .* portraits-uce"),
    ):
        write_profile("smoke", path)
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(FreezeAsGuardError, match=f"{said}.*run `freezeasguard cells`"):
            check_cells(load_params(path), cells)
    for content, said in (("[]", "does not match"), ("{", "is not JSON"), (None, "is missing")):
        cells.unlink() if content is None else cells.write_text(content)
        with pytest.raises(FreezeAsGuardError, match=f"{said}.*run `freezeasguard cells`"):
            check_cells(load_params(path), cells)


def test_the_committed_cells_are_those_of_params_yaml() -> None:
    check_cells(load_params(ROOT / "params.yaml"), ROOT / "data/cells.json")


def test_baselines_get_cells_and_a_protection_stage(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(profile_text("smoke").replace("baselines: [uce]", "baselines: [imma, uce-b, uce]"))
    params = load_params(path)
    expected = ["pretrained", "uce-before", "uce-b-before", "full", "uce", "uce-b", "imma", "freezeasguard", "random"]
    assert params.arms("portraits") == expected
    assert {cell.arm: cell.stage for cell in params.sweep_cells.values()} == {
        "uce": "uce",
        "uce-b": "uce",
        "imma": "imma",
    }
    assert params.arm_rho("uce-b") == 0
    assert [split_arm(arm) for arm in ("uce-b", "random-10", "full")] == [
        ("uce-b", None),
        ("random", 10),
        ("full", None),
    ]


def test_missing_params_and_unknown_case_exit_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stages.tables"]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "error: params.yaml is missing; run `freezeasguard profile tiny`" in done.stderr
    write_profile("smoke", tmp_path / "params.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "stages.encode", "nobody"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 1 and "has no case 'nobody'" in done.stderr and "Traceback" not in done.stderr


def test_importing_the_command_loads_nothing_heavy() -> None:
    heavy = ("torch", "diffusers", "mlflow", "pandas")
    code = f"import sys, freezeasguard.cli; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_stages_that_only_count_and_print_load_no_torch() -> None:
    code = "import sys; from stages import split, survey, tables; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"
