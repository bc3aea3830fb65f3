"""A user's own images: a sub-folder a class, or a listing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pandas as pd

from freezeasguard.data.names import slug
from freezeasguard.data.sources.base import IMAGE_SUFFIXES, Item, is_inside, spoken
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.settings.params import Domain


def class_names(domain: Domain) -> list[str]:
    """Of what is there; an image that cannot be used may still cost a class."""
    return sorted({item.class_name for item in items(domain, Path(), 0)})


def items(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """A user's own images: a sub-folder a class, or a listing with path, class and caption."""
    assert domain.path is not None
    yield from (read_listing if domain.path.suffix in (".csv", ".jsonl") else read_class_folders)(domain.path)


def read_class_folders(root: Path, licence: str = "the user's own") -> Iterator[Item]:
    """One class a sub-folder of `root`, named as its subject."""
    classes = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if not classes:
        raise FreezeAsGuardError(f"{root} has no sub-folders with images; make one a class, named as its subject")
    for folder_ in classes:
        paths = sorted(p for p in folder_.iterdir() if not p.name.startswith("."))
        if not any(p.suffix.lower() in IMAGE_SUFFIXES for p in paths):
            raise FreezeAsGuardError(f"{folder_} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        for path in paths:
            is_image = path.suffix.lower() in IMAGE_SUFFIXES
            kind = "a folder" if path.is_dir() else f"a file {path.suffix}".strip()
            status = "ok" if is_image else f"refused: {kind}"
            image = path if is_image else None
            yield Item(slug(folder_.name), spoken(folder_.name), image, str(path), licence, status=status)


NAMES = {"file_name": "path", "text": "caption", "name": "class"}
"""What a listing of Hugging Face's imagefolder layout, such as FF25's, calls our columns."""


def read_listing(path: Path, licence: str = "the user's own", within: Path | None = None) -> Iterator[Item]:
    """A row an image: path (relative to the listing), class, and where there are some subject and caption.

    The columns may be those of an imagefolder's metadata (see NAMES); without a class, the images' folders are classes.
    A user's own listing may name files anywhere; a foreign one none outside the folder `within`.
    """
    if not path.is_file():
        raise FreezeAsGuardError(f"{path} is missing; it should list path, class and caption")
    try:
        table = pd.read_json(path, lines=True) if path.suffix == ".jsonl" else pd.read_csv(path, keep_default_na=False)
    except ValueError as error:
        raise FreezeAsGuardError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    table = table.rename(columns={old: new for old, new in NAMES.items() if new not in table.columns})
    table = table.fillna("").astype(str)
    if "class" not in table.columns and "path" in table.columns:
        folders = [PurePosixPath(file).parent.name for file in table["path"]]
        table = table.assign(**{"class": folders}) if all(folders) else table
    if missing := sorted({"path", "class"} - set(table.columns)):
        raise FreezeAsGuardError(f"{path} has no column {missing[0]!r}; it needs path and class, and may have caption")
    for row in table.to_dict("records"):
        file = path.parent / row["path"]
        status = "ok" if os.path.isfile(file) else "missing file"  # unlike Path's, false for any name
        if within is not None and not is_inside(file, within):
            status = "refused: a file outside the archive"
        yield Item(
            slug(row["class"]),
            row.get("subject") or spoken(row["class"]),
            file if status == "ok" else None,
            str(file),
            row.get("licence") or licence,
            row.get("caption", ""),
            status=status,
        )
