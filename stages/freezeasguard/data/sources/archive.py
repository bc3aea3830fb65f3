"""A zip of class folders, by path or by URL with its checksum."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from freezeasguard.data.sources.base import IMAGE_SUFFIXES, Item
from freezeasguard.data.sources.folder import read_class_folders, read_listing
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.settings.names import PINNED
from freezeasguard.settings.params import Archive, Domain
from freezeasguard.settings.pins import needs_pin

LISTINGS = ("captions.csv", "metadata.csv", "metadata.jsonl")


def items(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """A zip of class folders, unpacked safely; with listings of one of these names inside it, what they list.

    The authors' FF25 is `ff25/{train,test}/NAME/*.png` with metadata.csv (file_name, text, name).
    """
    from freezeasguard.data.download import unpack_zip

    config = domain.archive
    assert config is not None
    needs_pin(config.sha256, f"archive.sha256 of {config.url or config.path}")
    path = archive_path(config, downloads)
    bring_archive(config, path)
    unpacked = downloads / "unpacked"
    unpack_zip(path, unpacked, max_bytes=config.max_unpacked_bytes)
    licence = "as the archive's publisher states"
    for listing in LISTINGS:
        if found := sorted(unpacked.rglob(listing)):
            for path in found:
                yield from read_listing(path, licence, within=unpacked)
            return
    root = unpacked
    while (inner := _only_folder(root)) and not any(p.suffix.lower() in IMAGE_SUFFIXES for p in inner.iterdir()):
        root = inner  # archives often wrap everything in one folder
    yield from read_class_folders(root, licence)


def archive_path(config: Archive, downloads: Path) -> Path:
    return config.path or downloads / "archive.zip"


def bring_archive(config: Archive, path: Path, told_by: str = "params.yaml") -> str | None:
    """Have the zip at `path` with the hash that is told; returns its hash, None where none is told of a local file."""
    from freezeasguard.data.download import Limits, fetch_to_file, verify_sha256

    told = None if config.sha256 == PINNED else config.sha256
    if config.url is not None and not path.is_file():
        limits = Limits(config.max_bytes, config.timeout_s, config.allow_private)
        return fetch_to_file(config.url, path, limits, told, told_by=told_by)
    if not path.is_file():
        raise FreezeAsGuardError(f"{path} is missing; set archive.path to the zip, or archive.url to fetch it")
    return None if config.sha256 is None else verify_sha256(path, told, told_by=told_by)


def _only_folder(root: Path) -> Path | None:
    entries = [p for p in root.iterdir() if not p.name.startswith((".", "__"))]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else None
