"""Which code a stage stands on: the import closure of its command, by what each file computes.

The stage `settings` writes it beside the settings of every stage and cell, so that DVC's dependencies on code are true
by construction: an edit runs again what it can change, and nothing else. A file counts by its syntax tree without
docstrings: comments, layout and explanations change no result.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import freezeasguard
from freezeasguard.errors import FreezeAsGuardError

ROOT = Path(freezeasguard.__file__).parent.parent
"""The folder `stages`, whose code runs."""
LIBRARY = "freezeasguard"
PLUMBING = {
    "__init__.py": "in which process a stage runs, and that it ends with DVC",
    f"{LIBRARY}/__init__.py": "the version",
    f"{LIBRARY}/commands.py": "paths, arguments, signals; a changed path is a changed dvc.yaml",
    f"{LIBRARY}/errors.py": "the words of an error",
    f"{LIBRARY}/files.py": "how files are written whole; never what",
    f"{LIBRARY}/sides.py": "names of columns and files, which both ends of a stage share",
    f"{LIBRARY}/warm.py": "which process runs a stage; never what",
    f"{LIBRARY}/workers.py": "which process does what; results do not depend on it",
    f"{LIBRARY}/data/sources/registry.py": "where a source's code lies; the code itself is listed",
    f"{LIBRARY}/users/registry.py": "where an attacker's code lies; the code itself is listed",
}
"""Code that cannot change a result, by file, with the reason; neither is what it alone imports."""
SETTINGS = (f"{LIBRARY}/settings/",)
"""Their outcome stands beside the code in the file that is watched: code that reads it back changes nothing."""
NAMES = (f"{LIBRARY}/arms.py", f"{LIBRARY}/protections/registry.py", f"{LIBRARY}/scores/registry.py")
"""What arms and scores are called, and where their code lies: labels and colours are for the reports alone."""
NETWORKS = (f"{LIBRARY}/scores/networks/",)
"""Behind the scores, of which the reports read the names and labels: a network is imported to compute, there alone."""
REPORTS = ("tables", "figures", "report", "track")


@cache
def imports(path: Path) -> frozenset[Path]:
    """The library's modules that `path` imports when it runs, anywhere in it; not those for type checkers."""

    def nodes(tree: ast.AST) -> Iterator[ast.AST]:
        for node in ast.iter_child_nodes(tree):
            checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            if not checking:
                yield node
                yield from nodes(node)

    names: set[str] = set()
    for node in nodes(_tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    files = {file for name in names if name.partition(".")[0] == LIBRARY for file in _files(name)}
    return frozenset(file for file in files if file.is_file())


def _files(module: str) -> Iterator[Path]:
    """Where a module of the library lies, and the packages above it, which Python runs first."""
    path = ROOT / module.replace(".", "/")
    yield path.with_suffix(".py")
    for folder in (path, *path.parents):
        if folder == ROOT:
            return
        yield folder / "__init__.py"


def closure(starts: Iterable[Path], exempt: tuple[str, ...] = ()) -> set[Path]:
    """`starts` and every module of the library that they import, directly or not, but for plumbing.

    Args:
        exempt: beginnings of the names, below `stages`, of further files that count as plumbing.
    """
    seen: set[Path] = set()
    waiting = list(starts)
    while waiting:
        path = waiting.pop()
        name = _name(path)
        if path not in seen and name not in PLUMBING and not name.startswith(exempt):
            seen.add(path)
            waiting += imports(path)
    return seen


def exempt_of(stage: str) -> tuple[str, ...]:
    return SETTINGS + (NETWORKS if stage in REPORTS else NAMES)


@cache
def code_of(stage: str, modules: tuple[str, ...] = ()) -> dict[str, str]:
    """File below `stages` -> digest, of all code that a stage's results depend on.

    Args:
        modules: what the stage imports by a name out of the settings (a method, a source, a score, an attacker).
    """
    starts = [ROOT / f"{stage}.py", *map(module_file, modules)]
    return {_name(path): digest(path) for path in sorted(closure(starts, exempt_of(stage)))}


def module_file(module: str) -> Path:
    """Raises FreezeAsGuardError for a module that Python does not find."""
    own = next(_files(module))
    if own.is_file():
        return own
    try:
        found = find_spec(module)
    except ImportError:
        found = None
    if found is None or not found.origin:
        raise FreezeAsGuardError(f"there is no module {module!r}, which a registry names; correct it, or add the file")
    return Path(found.origin)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


@cache
def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise FreezeAsGuardError(f"{path} is not Python: {error}; correct it") from None


@cache
def digest(path: Path) -> str:
    """Of what the file computes; the same on every version of Python that reads it alike."""
    return hashlib.sha256(repr(_canonical(_tree(path))).encode()).hexdigest()[:16]


def _canonical(node: Any) -> Any:
    """The tree as nested tuples, without positions, docstrings and fields that hold nothing."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return type(node).__name__, *((name, _canonical(value)) for name, value in fields)
    if isinstance(node, list):
        return tuple(_canonical(item) for item in node if not _is_docstring(item))
    return node


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
