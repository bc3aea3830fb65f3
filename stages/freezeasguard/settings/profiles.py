"""Profiles: what a size of the pipeline changes of the common base; and the cells that dvc.yaml runs over.

`profiles/base.yaml` is the profile `tiny`, in full and with its comments; each other profile is an overlay that holds
its differences alone. In an overlay, null removes a key, a mapping is merged into the base's, and `extends` names
another profile than the base to be laid over.
"""

from __future__ import annotations

import io
import subprocess
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_atomically, write_json
from freezeasguard.reading import read_json
from freezeasguard.settings.params import PARAMS, Params, load_params, parse_params
from freezeasguard.settings.reading import parse_yaml, read_yaml, shown, yaml_errors

CELLS = Path("data/cells.json")
"""Beside params.yaml: the cells that its cases make, spelt out for dvc.yaml, which can derive nothing itself."""
BASE = "tiny"


def _folder() -> Any:
    return resources.files("freezeasguard.settings") / "profiles"


def profile_names() -> list[str]:
    names = {file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml")}
    return sorted(names - {"base"} | {BASE})


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096  # flow lists stay on one line
    return yaml


def _merge(base: Any, overlay: Any) -> None:
    for key, value in overlay.items():
        if value is None and isinstance(base.get(key), dict):
            del base[key]
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            _move_comment(base, overlay, key)
            base[key] = value


def _move_comment(base: Any, overlay: Any, key: str) -> None:
    """A value that an overlay replaces takes the base's remark on it along; the overlay's own stands in its place."""
    old, new = ((block.ca.items.get(key) or [None] * 4)[2] for block in (base, overlay))
    if old is not None and key in base:
        old.value = (new.value.partition("\n")[0] if new is not None else "") + "\n" + old.value.partition("\n")[2]
    elif new is not None and key not in base:
        base.ca.items[key] = overlay.ca.items[key]


def profile_text(name: str, *, allow_explicit: bool = True) -> str:
    """params.yaml of a profile, with the base's comments.

    Args:
        allow_explicit: False leaves out the domains that show explicit images, and their cases.
    """
    if name not in profile_names():
        raise FreezeAsGuardError(f"there is no profile {name!r}; choose one of {', '.join(profile_names())}")
    base = (_folder() / "base.yaml").read_text()
    if name == BASE:
        return base
    yaml = _yaml()
    overlay = yaml.load((_folder() / f"{name}.yaml").read_text())
    values = yaml.load(profile_text(overlay.pop("extends", BASE)))
    _merge(values, overlay)
    if not allow_explicit and values.get("allow_explicit"):
        values["allow_explicit"] = False
        for domain in explicit_domains(name):
            del values["domains"][domain]
            for case in [case for case, of in values["cases"].items() if of["domain"] == domain]:
                del values["cases"][case]
    buffer = io.StringIO()
    yaml.dump(values, buffer)
    return buffer.getvalue()


def explicit_domains(name: str) -> list[str]:
    """Those of a profile that show explicit images."""
    domains = checked(profile_text(name), Path(f"profile {name}")).domains
    return [key for key, domain in domains.items() if domain.any_explicit]


def write_profile(name: str, path: Path = PARAMS, *, allow_explicit: bool = True) -> Path | None:
    """Replace params.yaml by the profile, and its cells; returns the copy of what was lost otherwise, if any was."""
    text = profile_text(name, allow_explicit=allow_explicit)
    checked(text, Path(f"profile {name}"))
    copy = keep_copy(path)
    write_params(text, path)
    return copy


def keep_copy(path: Path) -> Path | None:
    """Copy what neither a profile nor git's HEAD brings back to params.yaml.bak, .bak2, ...; returns the copy."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    texts = (profile_text(name, allow_explicit=allowed) for name in profile_names() for allowed in (True, False))
    if content == _committed(path) or any(content == text.encode() for text in texts):
        return None
    for number in count(1):
        copy = path.with_name(f"{path.name}.bak{number if number > 1 else ''}")
        if not copy.exists():
            with write_atomically(copy) as temporary:
                temporary.write_bytes(content)
        if copy.is_file() and copy.read_bytes() == content:
            return copy


def _committed(path: Path) -> bytes | None:
    command = ["git", "-C", str(path.absolute().parent), "show", f"HEAD:./{path.name}"]
    try:
        done = subprocess.run(command, capture_output=True)
    except OSError:  # no git
        return None
    return done.stdout if done.returncode == 0 else None


def checked(text: str, source: Path) -> Params:
    return parse_params(parse_yaml(text, source), source)


def write_params(text: str, path: Path) -> None:
    """Write params.yaml and its cells, or neither: the text is checked first."""
    cells = cells_content(checked(text, path))
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(path.parent / CELLS, cells)


def updated_text(path: Path, changed: dict[str, Any]) -> str:
    """The file with top-level blocks replaced; whatever stays of it keeps its comments."""
    read_yaml(path)  # refuses what is too much for the parser that keeps comments
    yaml = _yaml()
    with yaml_errors(path):  # it refuses more than the other one
        values = yaml.load(path.read_text(encoding="utf-8"))
    for block, new in changed.items():
        old = values.get(block)
        if isinstance(old, dict) and isinstance(new, dict):
            for key in [key for key in old if key not in new]:
                del old[key]
            old.update({key: value for key, value in new.items() if key not in old or old[key] != value})
        else:
            values[block] = new
    buffer = io.StringIO()
    yaml.dump(values, buffer)
    return buffer.getvalue()


def update_params(path: Path, changed: dict[str, Any]) -> None:
    """Replace top-level blocks of params.yaml, and derive its cells; nothing is written where that makes no sense."""
    write_params(updated_text(path, changed), path)


def write_cells(path: Path = PARAMS) -> None:
    """Derive the cells beside `path` from its cases again."""
    write_json(path.parent / CELLS, cells_content(load_params(path)))


def check_cells(params: Params, path: Path = CELLS) -> None:
    """Refuse a file of cells that the cases have outgrown: dvc.yaml would run others than the tables ask for."""
    remedy = "run `freezeasguard cells`"
    found, expected = read_json(path, remedy, object), cells_content(params)
    if not isinstance(found, dict):
        raise FreezeAsGuardError(f"{path} does not match the cases of params.yaml (it holds no mapping); {remedy}")
    for key in {**expected, **found}:
        block, wanted = found.get(key), expected.get(key)
        if block != wanted:
            odd = key
            if isinstance(block, dict) and isinstance(wanted, dict):
                odd = min(name for name in {*block, *wanted} if block.get(name) != wanted.get(name))
            said = f"{shown(key)[1:-1]} does not match the cases of params.yaml (see {shown(odd)[1:-1]})"
            raise FreezeAsGuardError(f"{path}: {said}; {remedy}")


def cells_content(params: Params) -> dict[str, dict[str, Any]]:
    """What dvc.yaml runs over beside the domains and cases of params.yaml itself.

    `fetched`: a model, and the folder whose change brings it again. `protected`: a case and arm, with the data
    that its method stands on; where it stands on less than another, a path that it has anyway is named again.
    `cells`: a case and arm, and the protected model that its users start from.
    """
    fetched = {
        name: {"watch": str(model.path or Path("data/settings/fetch") / f"{name}.json")}
        for name, model in params.models.items()
    }
    protected = {}
    for case, arm in params.protected:
        kind, model = arm.kind, f"data/fetched/{params.cases[case].model}"
        latents, finetuned = f"data/latents/{case}", f"data/finetuned/{case}"
        protected[f"{case}-{arm.name}"] = {
            "case": case,
            "arm": arm.name,
            "model": params.cases[case].model,
            "latents": model if kind.reads == "model" else latents,
            "finetuned": finetuned if kind.reads == "finetuned" else model,
        }
    cells = {
        f"{case}-{arm.name}": {
            "case": case,
            "arm": arm.name,
            "model": params.cases[case].model,
            "protected": arm.protected.name,
        }
        for case, arm in params.cells
    }
    return {"fetched": fetched, "protected": protected, "cells": cells}
