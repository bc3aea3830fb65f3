"""Sources of images: each yields the images of a domain, class by class, with caption and licence."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError
from tqdm.auto import tqdm

from freezeasguard.config import Domain
from freezeasguard.data import figures
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import folder_atomically

MANIFEST = "manifest.csv"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Item:
    class_name: str
    """A folder name: "mira-tovena"."""
    subject: str
    """How captions call the class: "Mira Tovena"."""
    image: Image.Image | None
    """None where the source could not be read; `status` then says why."""
    caption: str
    source: str
    licence: str
    status: str = "ok"


def slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def embedded_figures(domain: Domain, seed: int) -> Iterator[Item]:
    """The 25 drawn figures, each in `images_per_class` poses that differ from one another."""
    meta = figures.style_definition("avataaars")["meta"]
    licence = f"avataaars by {meta['creator']['name']}: {meta['license']['name']}"
    for index, figure in enumerate(tqdm(figures.famous_figures(), desc="drawing portraits")):
        rng = np.random.default_rng([seed, index])
        poses: dict[figures.Pose, None] = {}
        while len(poses) < domain.images_per_class:
            poses[figures.draw_pose(rng)] = None
        for pose in poses:
            image = figures.render_figure(figure, pose, domain.size_px)
            caption = figures.caption(figure.name, pose)
            yield Item(slug(figure.name), figure.name, image, caption, "dicebear-styles==10.6.0", licence)


def folder(domain: Domain, seed: int) -> Iterator[Item]:
    """A user's own images: one sub-folder a class; a sub-folder's name is its subject."""
    root = domain.path
    assert root is not None
    classes = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if not classes:
        raise FreezeAsGuardError(f"{root} has no sub-folders with images; make one a class, named as its subject")
    for folder_ in classes:
        subject = folder_.name.replace("_", " ").replace("-", " ").title()
        paths = sorted(p for p in folder_.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise FreezeAsGuardError(f"{folder_} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        for path in paths:
            image, status = read_image(path, domain.size_px)
            yield Item(slug(folder_.name), subject, image, f"a photo of {subject}", str(path), "the user's own", status)


def read_image(path: Path, size_px: int) -> tuple[Image.Image | None, str]:
    """The image cropped to its central square and scaled, or None and the reason."""
    from PIL import ImageOps

    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        return None, f"unreadable: {type(error).__name__}"
    return ImageOps.fit(upright, (size_px, size_px), Image.Resampling.LANCZOS), "ok"


SOURCES = {"embedded-figures": embedded_figures, "folder": folder}


def collect(domain: Domain, out: Path, seed: int) -> pd.DataFrame:
    """Write images and a manifest; every image that was left out keeps its row and its reason.

    Files are named by the hash of their content, so that a rerun gives the same tree. An image that a
    class already has, byte for byte, is left out.
    """
    rows: list[dict[str, object]] = []
    seen: set[str] = set()
    with folder_atomically(out) as temporary:
        for item in SOURCES[domain.source](domain, seed):
            row = {
                "path": "",
                "class": item.class_name,
                "subject": item.subject,
                "caption": item.caption,
                "source": item.source,
                "licence": item.licence,
                "sha256": "",
                "width": 0,
                "height": 0,
                "status": item.status,
            }
            if item.image is not None:
                buffer = io.BytesIO()
                item.image.save(buffer, "PNG")
                digest = hashlib.sha256(buffer.getvalue()).hexdigest()
                row |= {"sha256": digest, "width": item.image.width, "height": item.image.height}
                if digest in seen:
                    row["status"] = "duplicate"
                else:
                    seen.add(digest)
                    row["path"] = f"images/{item.class_name}/{digest[:16]}.png"
                    path = temporary / str(row["path"])
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(buffer.getvalue())
            rows.append(row)
        manifest = pd.DataFrame(rows)
        if "ok" not in set(manifest["status"]):
            raise FreezeAsGuardError(f"{domain.path or domain.source}: none of {len(rows)} images could be read")
        manifest.to_csv(temporary / MANIFEST, index=False)
    return manifest


def read_manifest(raw: Path) -> pd.DataFrame:
    """The manifest's rows; a missing file says which stage writes it."""
    if not (raw / MANIFEST).is_file():
        raise FreezeAsGuardError(f"{raw / MANIFEST} is missing; run `dvc repro crawl`")
    return pd.read_csv(raw / MANIFEST, keep_default_na=False)
