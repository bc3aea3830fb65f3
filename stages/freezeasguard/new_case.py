"""Bring your own: two folders of images become a domain and a case of params.yaml."""

from __future__ import annotations

import csv
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from freezeasguard.checks import check_size, model_folder
from freezeasguard.data.names import slug
from freezeasguard.data.sources.base import IMAGE_SUFFIXES, spoken
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_atomically
from freezeasguard.models.fetch import check_model_folder
from freezeasguard.settings.params import PARAMS, Domain, Model, parse_params
from freezeasguard.settings.profiles import keep_copy, updated_text, write_params
from freezeasguard.settings.reading import read_yaml, validated

if TYPE_CHECKING:
    import pandas as pd

LISTINGS = Path("data/cases")
MIN_IMAGES = 10
"""A class: fewer leave nothing to learn a mask from, to adapt on, and to hold out."""

MIN_GENERATED = 60
"""A side: scores of fewer generated images say little. A case with few classes gets more images a prompt."""

FULL_SIZE_PX = 256
"""From here on a model is no miniature, and its users train as the paper's do (App. E)."""
PAPERS_USERS = {"adapt_steps": 2000, "adapt_lr": 1e-5}
PAPERS_BLOCKS: dict[str, dict[str, Any]] = {
    "relearn": {"steps": 2000, "lr": 1e-5, "batch_size": 4},
    "adapt": {"batch_size": 4},
    "generate": {"steps": 50, "guidance_scale": 7.5},
}
"""What the cases of a params.yaml share, so that only `new-case --only` may set it."""

Sides = Mapping[str, Mapping[str, list[Path]]]
"""side -> class, named as its folder -> images."""


class Added(NamedTuple):
    n_images: dict[str, int]
    """Of a side, those that the stage crawl will keep."""
    left_out: Counter[str]
    """The others, by the reason that its manifest will give, and files that are no images by their name."""
    copy: Path | None
    """Of an edited params.yaml whose other cases were dropped."""
    miniature: list[str]
    """Settings that the case of a full-size model shares with the cases of miniature ones, as "block.key value"."""


def images_by_class(root: Path, side: str) -> dict[str, list[Path]]:
    """Images by class name: the folder's own, or those of its sub-folders; never some of each."""
    if not root.is_dir():
        raise FreezeAsGuardError(f"--{side} {root} is no folder")
    folders, images = _folders(root), _images(root)
    if folders and images:
        raise FreezeAsGuardError(
            f"--{side} {root} has {len(images)} images beside its sub-folders (as {images[0].name}); sub-folders are "
            "classes: move the images into one of them, or away"
        )
    found = {folder.name: _images(folder) for folder in folders} or {root.resolve().name: images}
    for folder in folders:
        if deeper := _folders(folder):
            raise FreezeAsGuardError(
                f"--{side} {root}: class {folder.name!r} has a sub-folder {deeper[0].name!r}; "
                "move its images up, or make it a class of its own"
            )
    for name, paths in found.items():
        _check_class(f"--{side} {root}: class {name!r}", name, len(paths), "")
    for a, b in zip(by_slug := sorted(found, key=slug), by_slug[1:], strict=False):
        if slug(a) == slug(b):
            raise FreezeAsGuardError(f"--{side} {root}: folders {a!r} and {b!r} are one class, {slug(a)!r}; rename one")
    return found


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _folders(folder: Path) -> list[Path]:
    return [p for p in _visible(folder) if p.is_dir()]


def _images(folder: Path) -> list[Path]:
    found = [p for p in _visible(folder) if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir()]
    if odd := [p.name for p in found if not p.name.isprintable()]:
        raise FreezeAsGuardError(f"{str(folder)!r}: the name {odd[0]!r} cannot stand in a listing; rename the image")
    return found


def _check_class(what: str, name: str, n_images: int, reasons: str) -> None:
    if re.fullmatch(r"[\d-]*|nan|inf|infinity|true|false|\d+e\d+", slug(name)):  # a table would read it as a number
        raise FreezeAsGuardError(f"{what} has a name that is no word; rename its folder to one")
    if n_images < MIN_IMAGES:
        suffixes = "" if n_images or reasons else f" ({', '.join(sorted(IMAGE_SUFFIXES))})"
        raise FreezeAsGuardError(f"{what} has {n_images} images{suffixes}{reasons}; give it {MIN_IMAGES}")


def add_case(
    name: str,
    folders: Mapping[str, Path],
    model: str,
    revision: str | None,
    size_px: int,
    only: bool,
    path: Path = PARAMS,
) -> Added:
    """Write the listing, the entries and the cells. Whatever is wrong is told before anything is written."""
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) or len(name) > 40:
        raise FreezeAsGuardError(f"{name!r} is no name for a case; use small letters, digits and dashes, 40 at most")
    values = read_yaml(path)
    params = parse_params(values, path)
    if not only and (blocks := [block for block in ("cases", "domains") if name in values[block]]):
        raise FreezeAsGuardError(
            f"{path} has a {blocks[0][:-1]} {name!r} already; choose another name, or remove it there"
        )
    sides = {side: images_by_class(folder, side) for side, folder in folders.items()}
    if both := sorted({slug(c) for c in sides["illegal"]} & {slug(c) for c in sides["legal"]}):
        raise FreezeAsGuardError(f"class {both[0]!r} is on both sides; rename one of the folders")
    models, model_name = _model_entry(values["models"], name, model, revision)
    spec = params.models.get(model_name) or validated(Model, models[model_name], Path("--model"))
    folder = model_folder(model_name, spec)
    if spec.path is not None:
        check_model_folder(folder)
    check_size(size_px, folder)
    listing = LISTINGS / f"{name}.csv"
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
    papers = PAPERS_BLOCKS if size_px >= FULL_SIZE_PX else {}
    case |= PAPERS_USERS if papers else {}
    changed = {
        "domains": {name: domain} if only else {**values["domains"], name: domain},
        "models": models,
        "cases": {name: case} if only else {**values["cases"], name: case},
    }
    if only:
        changed |= {block: {**values[block], **own} for block, own in papers.items()}
    parse_params({**values, **changed}, path)
    manifest = _looked_at(domain, sides, params.seed)
    n_images = _usable(manifest, sides, folders)
    if only:
        generate = changed.get("generate", values["generate"])
        changed["generate"] = _enough_images(generate, min(n_images.values()))
    text = updated_text(path, changed)
    _write_listing(listing, sides)
    copy = keep_copy(path) if only else None
    write_params(text, path)
    shared = {} if only else papers
    miniature = [f"{b}.{k} {values[b].get(k)}" for b, own in shared.items() for k in own if values[b].get(k) != own[k]]
    return Added(n_images, _left_out(manifest, folders), copy, miniature)


def _looked_at(domain: dict[str, Any], sides: Sides, seed: int) -> pd.DataFrame:
    """The manifest that the stage crawl will write of these images."""
    from freezeasguard.data.crawl import crawl_domain

    with TemporaryDirectory() as temporary:
        listing = Path(temporary, "listing.csv")
        _write_listing(listing, sides)
        block = validated(Domain, {**domain, "path": str(listing)}, Path("--size-px"))
        return crawl_domain(block, Path(temporary, "raw"), Path(temporary, "downloads"), seed)


def _usable(manifest: pd.DataFrame, sides: Sides, folders: Mapping[str, Path]) -> dict[str, int]:
    """side -> images that can be used; refused are an image on both sides, and a class with too few."""
    side_of = {slug(name): side for side, classes in sides.items() for name in classes}
    copies = manifest[manifest["status"].str.startswith("duplicate of images/")]
    first = copies["status"].str.split("/").str[1]
    if len(both := copies[copies["class"].map(side_of) != first.map(side_of)]):
        raise FreezeAsGuardError(
            f"{len(both)} images are on both sides, e.g. {both['source'].iloc[0]}; remove them from one of the folders"
        )
    usable = manifest[manifest["status"] == "ok"]["class"].value_counts()
    for side, classes in sides.items():
        for name in classes:
            of_class = manifest[manifest["class"] == slug(name)]
            reasons = ", ".join(f"{n} {reason}" for reason, n in _reasons(of_class).items())
            what = f"--{side} {folders[side]}: class {name!r}"
            _check_class(
                what, name, int(usable.get(slug(name), 0)), f" that can be used ({reasons})" if reasons else ""
            )
    return {side: int(usable[[slug(name) for name in classes]].sum()) for side, classes in sides.items()}


def _reasons(manifest: pd.DataFrame) -> Counter[str]:
    """Why images are left out: "near-duplicate" of whichever."""
    refused = manifest[manifest["status"] != "ok"]["status"]
    return Counter(refused.str.split(" of ").str[0])


def _left_out(manifest: pd.DataFrame, folders: Mapping[str, Path]) -> Counter[str]:
    found = _reasons(manifest)
    for root in folders.values():
        for folder in [root, *_folders(root)]:
            images = {*_images(folder), *_folders(folder)}
            found["no image by its name"] += sum(path not in images for path in _visible(folder))
    return +found


def _enough_images(generate: dict[str, Any], n_images: int) -> dict[str, Any]:
    """The block with images_per_prompt raised until a side of `n_images` has MIN_GENERATED images."""
    asked = generate["prompts_per_side"] + generate["held_out_prompts_per_side"]
    prompts = min(asked, math.ceil(n_images / 2))  # the other half is for mask learning
    return {**generate, "images_per_prompt": max(generate["images_per_prompt"], math.ceil(MIN_GENERATED / prompts))}


def _model_entry(models: dict[str, Any], case: str, model: str, revision: str | None) -> tuple[dict[str, Any], str]:
    """The block `models` with the model in it, and the model's name there."""
    is_folder = Path(model).is_dir()
    if revision is not None and (model in models or is_folder):
        raise FreezeAsGuardError(f"--revision is of a hub model, but --model {model} is here already; leave it out")
    if model in models:
        return models, model
    if not is_folder and revision is None:
        raise FreezeAsGuardError(
            f"--model {model} is no name in params.yaml ({', '.join(models)}) and no folder; "
            "if it is a hub id, give its --revision too"
        )
    name, entry = f"{case}-model", {"path": model} if is_folder else {"repo": model, "revision": revision}
    if name in models and models[name] != entry:
        raise FreezeAsGuardError(f"params.yaml has another model {name!r}; remove it there, or choose another name")
    return {**models, name: entry}, name


def _write_listing(listing: Path, sides: Sides) -> None:
    with write_atomically(listing) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", "subject"])
        for classes in sides.values():
            for name, paths in classes.items():
                writer.writerows([os.path.abspath(p), slug(name), spoken(name)] for p in paths)
