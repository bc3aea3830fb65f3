"""Bring your own: two folders of images become a domain and a case of params.yaml."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from freezeasguard.data.sources.base import IMAGE_SUFFIXES, slug, spoken
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_atomically
from freezeasguard.settings.params import PARAMS
from freezeasguard.settings.profiles import update_params, write_cells

LISTINGS = Path("data/cases")
MIN_IMAGES = 10
"""A class: fewer leave nothing to learn a mask from, to adapt on, and to hold out."""

MIN_GENERATED = 60
"""A side: scores of fewer generated images say little. A case with few classes gets more images a prompt."""


def images_by_class(root: Path, side: str) -> dict[str, list[Path]]:
    """Images by class name: the folder's own, or those of its sub-folders."""
    if not root.is_dir():
        raise FreezeAsGuardError(f"--{side} {root} is no folder")

    def images(folder: Path) -> list[Path]:
        return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)

    found = {p.name: images(p) for p in sorted(root.iterdir()) if p.is_dir()}
    found = {name: paths for name, paths in found.items() if paths} or {root.resolve().name: images(root)}
    for name, paths in found.items():
        if len(paths) < MIN_IMAGES:
            raise FreezeAsGuardError(f"--{side} {root}: class {name!r} has {len(paths)} images; give it {MIN_IMAGES}")
    return found


def add_case(
    name: str,
    folders: Mapping[str, Path],
    model: str,
    revision: str | None,
    size_px: int,
    only: bool,
    path: Path = PARAMS,
) -> dict[str, int]:
    """Write the listing, the entries and the cells; returns the number of images a side. Refused, params.yaml stays."""
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise FreezeAsGuardError(f"{name!r} is no name for a case; use small letters, digits and dashes")
    values = yaml.safe_load(path.read_text())
    if name in values["cases"] and not only:
        raise FreezeAsGuardError(f"{path} has a case {name!r} already; choose another name, or remove it there")
    sides = {side: images_by_class(folder, side) for side, folder in folders.items()}
    if both := sorted({slug(c) for c in sides["illegal"]} & {slug(c) for c in sides["legal"]}):
        raise FreezeAsGuardError(f"class {both[0]!r} is on both sides; rename one of the folders")
    listing = LISTINGS / f"{name}.csv"
    models, model_name = _model_entry(values["models"], name, model, revision)
    domain = {
        "source": "folder",
        "path": str(listing),
        "size_px": size_px,
        "held_out_images": 2,
        "clean": {"near_duplicate_bits": 4},
    }
    case: dict[str, Any] = {"domain": name, "model": model_name, "table": None}
    case |= {side: [slug(c) for c in classes] for side, classes in sides.items()}
    case["arms"] = ["pretrained", "full", "freezeasguard", "random"]
    changed = {
        "domains": {name: domain} if only else {**values["domains"], name: domain},
        "models": models,
        "cases": {name: case} if only else {**values["cases"], name: case},
    }
    if only:
        changed["generate"] = _enough_images(
            values["generate"], min(sum(map(len, classes.values())) for classes in sides.values())
        )
    _write_listing(listing, sides)
    before = path.read_text()
    try:
        update_params(path, changed)
        write_cells(path)  # checks the whole file first
    except FreezeAsGuardError:
        path.write_text(before)
        raise
    return {side: sum(map(len, classes.values())) for side, classes in sides.items()}


def _enough_images(generate: dict[str, Any], n_images: int) -> dict[str, Any]:
    """The block with images_per_prompt raised until a side of `n_images` has MIN_GENERATED images."""
    asked = generate["prompts_per_side"] + generate["held_out_prompts_per_side"]
    prompts = min(asked, math.ceil(n_images / 2))  # the other half is for mask learning
    return {**generate, "images_per_prompt": max(generate["images_per_prompt"], math.ceil(MIN_GENERATED / prompts))}


def _model_entry(models: dict[str, Any], case: str, model: str, revision: str | None) -> tuple[dict[str, Any], str]:
    if model in models:
        return models, model
    if Path(model).is_dir():
        return {**models, f"{case}-model": {"path": model}}, f"{case}-model"
    if revision is None:
        raise FreezeAsGuardError(
            f"--model {model} is no name in params.yaml ({', '.join(models)}) and no folder; "
            "if it is a hub id, give its --revision too"
        )
    return {**models, f"{case}-model": {"repo": model, "revision": revision}}, f"{case}-model"


def _write_listing(listing: Path, sides: Mapping[str, Mapping[str, list[Path]]]) -> None:
    with write_atomically(listing) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", "subject"])
        for classes in sides.values():
            for name, paths in classes.items():
                writer.writerows([p.resolve(), slug(name), spoken(name)] for p in paths)
