"""Collect a domain's images from its source, clean them, and keep a manifest of every one that was met."""

from __future__ import annotations

import hashlib
import io
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from freezeasguard.data.clean import Cleaner, decode, near_duplicates, perceptual_hash
from freezeasguard.data.manifest import COLUMNS, MANIFEST
from freezeasguard.data.names import is_class_name
from freezeasguard.data.sources.base import Item, as_utf8
from freezeasguard.data.sources.registry import SOURCES
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import folder_atomically
from freezeasguard.settings.params import Domain


def crawl_domain(domain: Domain, out: Path, downloads: Path, seed: int) -> pd.DataFrame:
    """Write images and a manifest; every image that was left out keeps its row and its reason.

    Files are named by the hash of their content, so that a rerun gives the same tree. What a class, or
    another class, already has - byte for byte or to the eye - is left out.

    Args:
        downloads: where sources keep what they fetched between runs.
    """
    source = import_module(SOURCES[domain.source].import_path)
    clean = Cleaner(domain.clean, domain.size_px)
    rows: list[dict[str, object]] = []
    hashes: list[np.ndarray] = []
    hashed: list[int] = []
    seen: dict[str, str] = {}
    with folder_atomically(out) as temporary:
        for item in tqdm(source.items(domain, downloads, seed), desc="collecting images", unit=" images"):
            row: dict[str, object] = dict.fromkeys(COLUMNS, "")
            # One line: Python's csv writer leaves a lone "\r" unquoted, which would tear the table.
            caption = " ".join(item.caption.split())
            row |= {"class": item.class_name, "subject": item.subject, "caption": caption, "page": item.page}
            row |= {"source": item.source, "licence": item.licence, "robots": item.robots, "time": item.time}
            row |= {"bytes": 0, "width": 0, "height": 0}
            image, status = _read(item, domain.clean.max_pixels, row)
            if image is not None:
                row |= {"width": image.width, "height": image.height}
                image, status = clean(image)
            if image is not None:
                status = _keep(image, row, seen, temporary)
                if status == "ok" and domain.clean.near_duplicate_bits is not None:
                    hashes.append(perceptual_hash(image))
                    hashed.append(len(rows))
            row["status"] = status
            rows.append({key: as_utf8(value) if isinstance(value, str) else value for key, value in row.items()})
        if domain.clean.near_duplicate_bits is not None:
            _drop_near_duplicates(rows, hashed, hashes, domain.clean.near_duplicate_bits, temporary)
        manifest = pd.DataFrame(rows, columns=COLUMNS)
        if "ok" not in set(manifest["status"]):
            reasons = json.dumps(manifest["status"].value_counts().to_dict())
            raise FreezeAsGuardError(
                f"{domain.path or domain.source}: none of {len(rows)} images could be used: {reasons}"
            )
        manifest.to_csv(temporary / MANIFEST, index=False)
    return manifest


def _read(item: Item, max_pixels: int, row: dict[str, object]) -> tuple[Image.Image | None, str]:
    if not is_class_name(item.class_name):
        return None, f"refused: class name {item.class_name[:100]!r}"
    if item.image is None or isinstance(item.image, Image.Image):
        return item.image, item.status
    try:
        content = item.image.read_bytes() if isinstance(item.image, Path) else item.image
    except OSError as error:
        return None, f"unreadable: {type(error).__name__}"
    row |= {"bytes": len(content), "source_sha256": hashlib.sha256(content).hexdigest()}
    return decode(content, max_pixels)


def _keep(image: Image.Image, row: dict[str, object], seen: dict[str, str], out: Path) -> str:
    """Write the image unless its pixels are there already; returns the status."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    row["sha256"] = digest
    if digest in seen:
        return f"duplicate of {seen[digest]}"
    row["path"] = f"images/{row['class']}/{digest[:16]}.png"
    seen[digest] = str(row["path"])
    path = out / str(row["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return "ok"


def _drop_near_duplicates(
    rows: list[dict[str, object]], hashed: list[int], hashes: list[np.ndarray], max_bits: int, out: Path
) -> None:
    for index, first in zip(hashed, near_duplicates(hashes, max_bits), strict=True):
        if first is not None:
            (out / str(rows[index]["path"])).unlink()
            rows[index] |= {"path": "", "status": f"near-duplicate of {rows[hashed[first]]['path']}"}
