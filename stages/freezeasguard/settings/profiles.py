"""Profiles: what a size of the pipeline changes of the common base; and the cells that dvc.yaml runs over.

`profiles/base.yaml` is the profile `tiny`, in full and with its comments; each other profile is an overlay that holds
its differences alone. In an overlay, null removes a key, and a mapping is merged into the base's.
"""

from __future__ import annotations

import io
from importlib import resources
from pathlib import Path
from typing import Any

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_atomically, write_json
from freezeasguard.reading import read_json
from freezeasguard.settings.params import PARAMS, Params, load_params, parse_params

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


def _merge(base: Any, overlay: dict[str, Any]) -> None:
    for key, value in overlay.items():
        if value is None and isinstance(base.get(key), dict):
            del base[key]
        elif isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def profile_text(name: str) -> str:
    """params.yaml of a profile, with the base's comments."""
    if name not in profile_names():
        raise FreezeAsGuardError(f"there is no profile {name!r}; choose one of {', '.join(profile_names())}")
    base = (_folder() / "base.yaml").read_text()
    if name == BASE:
        return base
    yaml = _yaml()
    values = yaml.load(base)
    _merge(values, yaml.load((_folder() / f"{name}.yaml").read_text()))
    buffer = io.StringIO()
    yaml.dump(values, buffer)
    return buffer.getvalue()


def write_profile(name: str, path: Path = PARAMS) -> None:
    """Replace params.yaml by the profile, and its cells; git shows what changed."""
    import yaml

    text = profile_text(name)
    params = parse_params(yaml.safe_load(text), Path(f"profile {name}"))
    with write_atomically(path) as temporary:
        temporary.write_text(text)
    write_json(path.parent / CELLS, cells_content(params))


def update_params(path: Path, changed: dict[str, Any]) -> None:
    """Replace whole top-level blocks, leaving everything else of the file, comments too, as it is."""
    yaml = _yaml()
    values = yaml.load(path.read_text())
    values.update(changed)
    with write_atomically(path) as temporary, temporary.open("w") as file:
        yaml.dump(values, file)


def write_cells(path: Path = PARAMS) -> None:
    """Derive the cells beside `path` from its cases again."""
    write_json(path.parent / CELLS, cells_content(load_params(path)))


def check_cells(params: Params, path: Path = CELLS) -> None:
    """Refuse a file of cells that the cases have outgrown: dvc.yaml would run others than the tables ask for."""
    remedy = "run `freezeasguard cells`"
    found = read_json(path, remedy, object)
    for key, expected in cells_content(params).items():
        block = found.get(key) if isinstance(found, dict) else None
        block = block if isinstance(block, dict) else {}
        if odd := sorted(name for name in {*block, *expected} if block.get(name) != expected.get(name)):
            raise FreezeAsGuardError(f"{path}: {key} does not match the cases of params.yaml (see {odd[0]}); {remedy}")


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
