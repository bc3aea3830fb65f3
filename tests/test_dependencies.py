"""What a stage depends on is declared: its code by the import closure, its settings by the files that it reads."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from freezeasguard.protections.registry import METHODS

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "stages/freezeasguard"
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

PLUMBING = {
    "stages/__init__.py": "turns the garbage collector off while importing",
    "stages/freezeasguard/__init__.py": "the version",
    "stages/freezeasguard/commands.py": "paths and arguments; a changed path is a changed dvc.yaml",
    "stages/freezeasguard/errors.py": "the words of an error",
    "stages/freezeasguard/files.py": "how files are written whole; never what",
    "stages/freezeasguard/sides.py": "names of columns and files, which both ends of a stage share",
    "stages/freezeasguard/workers.py": "which process does what; results do not depend on it",
}
"""Code that cannot change a result, by file, with the reason; neither is what it alone imports."""
SETTINGS = "stages/freezeasguard/settings"
"""Its outcome, the file in data/settings, is a dependency: code that reads it back changes nothing."""
NAMES = ("stages/freezeasguard/arms.py", "stages/freezeasguard/protections/registry.py")
"""What an arm is called, and where its code lies. Its stage reads no label or colour: those are for the reports."""
NAMES_ALONE = ("protect", "adapt", "reference", "score")
NETWORKS = "stages/freezeasguard/scores/networks"
"""Behind the scores, of which these stages read the names and labels: a network is imported to compute, there alone."""
NO_NETWORKS = ("tables", "figures", "report", "track")


@cache
def imports(path: Path) -> frozenset[Path]:
    """The library's modules that `path` imports when it runs, anywhere in it; not those for type checkers."""

    def nodes(tree: ast.AST) -> Iterator[ast.AST]:
        for node in ast.iter_child_nodes(tree):
            checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            if not checking:
                yield node
                yield from nodes(node)

    found = set()
    for node in nodes(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {
            ROOT / "stages" / (name.replace(".", "/") + ".py") for name in names if name.startswith("freezeasguard")
        }
    return frozenset(file for file in found if file.is_file())


def closure(starts: list[Path], exempt: tuple[str, ...]) -> set[str]:
    seen: set[Path] = set()
    waiting = list(starts)
    while waiting:
        path = waiting.pop()
        name = str(path.relative_to(ROOT))
        if path in seen or name in PLUMBING or name.startswith(exempt):
            continue
        seen.add(path)
        waiting += imports(path)
    return {str(path.relative_to(ROOT)) for path in seen}


def exempt(stage: str) -> tuple[str, ...]:
    if stage == "settings":
        return (NETWORKS,)
    names, networks = NAMES if stage in NAMES_ALONE else (), (NETWORKS,) if stage in NO_NETWORKS else ()
    return (SETTINGS, *names, *networks)


def code_deps(stage: str) -> list[str]:
    block = STAGES[stage].get("do", STAGES[stage])
    return [dep for dep in block["deps"] if dep.startswith("stages/") and not dep.endswith(".csv")]


def check(code: list[str], imported: set[str]) -> None:
    """Every imported module is named or in a named folder; nothing is named without being imported."""
    assert len(code) == len(set(code))
    for name in imported:
        assert any(name == dep or name.startswith(f"{dep}/") for dep in code), f"{name} is imported, not declared"
    for dep in code:
        assert any(name == dep or name.startswith(f"{dep}/") for name in imported), f"{dep} is declared, not imported"


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_declared_code_is_the_import_closure(stage: str) -> None:
    starts = [ROOT / "stages" / f"{stage}.py"]
    if stage != "protect":
        check(code_deps(stage), closure(starts, exempt(stage)))
        return
    for name, method in METHODS.items():  # each cell names its method's code
        code = list(dict.fromkeys([*code_deps(stage), method.code_file, method.code_also]))
        imported = closure([*starts, ROOT / method.code_file], exempt(stage))
        assert method.code_file in imported, name
        check(code, imported)


def test_the_closure_sees_imports_within_functions_and_not_those_for_type_checkers(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from freezeasguard.models.latents import CaseData\n"
        "def f():\n    from freezeasguard.models import sampling\n"
    )
    assert {path.name for path in imports(module)} == {"sampling.py"} | {
        path.name for path in imports(module) if path.name == "__init__.py"
    }


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"settings", "pretrain"}))
def test_a_stage_reads_settings_from_its_own_watched_file_alone(stage: str) -> None:
    text = (ROOT / "stages" / f"{stage}.py").read_text()
    read = set(re.findall(r'read_settings\(\w+, f?"(\w+)/', text)) | (
        {"reports"} if "read_reported()" in text else set()
    )
    assert read and "load_params" not in text and "params.yaml" not in text
    deps = STAGES[stage].get("do", STAGES[stage])["deps"]
    watched = {Path(dep).relative_to("data/settings").parts[0] for dep in deps if dep.startswith("data/settings/")}
    assert {Path(name).stem for name in watched} == read


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"settings", "pretrain"}))
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
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 400
