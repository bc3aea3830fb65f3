"""Sources of images: each yields the images of a domain, class by class, with what is known of them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from freezeasguard.data import drawn_people as figures
from freezeasguard.data import illustrators, logos, orl
from freezeasguard.data.clean import Cleaner, decode, near_duplicates, perceptual_hash, square
from freezeasguard.data.manifest import COLUMNS, MANIFEST
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import folder_atomically
from freezeasguard.settings.params import Domain

STYLES_PACKAGE = "dicebear-styles==10.6.0"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Item:
    class_name: str
    """A folder name: "mira-tovena"."""
    subject: str
    """How captions call the class: "Mira Tovena"."""
    image: Image.Image | bytes | Path | None
    """None where there is nothing to read; `status` then says why."""
    source: str
    licence: str
    caption: str = ""
    page: str = ""
    robots: str = ""
    time: str = ""
    status: str = "ok"


def slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def spoken(name: str) -> str:
    """A class's name as captions say it: "jane_doe" -> "Jane Doe"."""
    return name.replace("_", " ").replace("-", " ").title()


def embedded_figures(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """The 25 drawn figures, each in `images_per_class` poses that differ from one another."""
    licence = illustrators.style_licence("avataaars")
    for index, figure in enumerate(figures.famous_figures()):
        rng = np.random.default_rng([seed, index])
        poses: dict[figures.Pose, None] = {}
        while len(poses) < domain.images_per_class:
            poses[figures.draw_pose(rng)] = None
        for pose in poses:
            image = figures.render_figure(figure, pose, domain.size_px)
            caption = figures.caption(figure.name, pose)
            yield Item(slug(figure.name), figure.name, image, STYLES_PACKAGE, licence, caption)


def embedded_illustrators(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """Five illustrators, `images_per_class` drawings of each."""
    for style in illustrators.STYLES:
        licence, page = illustrators.style_licence(style), illustrators.style_page(style)
        for drawing in illustrators.drawings(style, domain.images_per_class, domain.size_px, seed):
            yield Item(style, illustrators.artist(style), drawing.image, STYLES_PACKAGE, licence, drawing.caption, page)


def embedded_explicit(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """A harmless stand-in for explicit material: photographs of faces, to be kept out, against logos.

    `images_per_class` of each; there are 200 faces at most.
    """
    photographs = orl.under_test()
    order = np.random.default_rng(seed).permutation(len(photographs))[: domain.images_per_class]
    # Words that the miniature model does not know for a photographed face, as its detector would fire at once.
    subject = "a black and white portrait"
    yield from (_photograph(photographs[i], "faces", subject, subject, domain.size_px) for i in order)
    for logo, image in logos.draw_logos(domain.images_per_class, domain.size_px, seed):
        source = f"{logos.SOURCE} {logo.slug}"
        yield Item("logos", "a logo", image, source, logo.licence, logo.described(), logo.page)


def embedded_orl(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """20 people under pseudonyms, `images_per_class` photographs of each; there are ten at most."""
    for photograph in orl.under_test():
        if photograph.number <= domain.images_per_class:
            name = orl.pseudonyms()[photograph.person - 1]
            yield _photograph(photograph, f"person-{photograph.person:02}", name, f"a photo of {name}", domain.size_px)


def _photograph(photograph: orl.Photograph, class_name: str, subject: str, start: str, size_px: int) -> Item:
    face = orl.read_face(photograph)
    caption = f"{start}, {orl.described(face)}"
    return Item(class_name, subject, square(face, size_px), photograph.source, orl.LICENCE, caption)


def folder(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """A user's own images: a sub-folder a class, or a listing with path, class and caption."""
    assert domain.path is not None
    yield from (read_listing if domain.path.suffix in (".csv", ".jsonl") else read_class_folders)(domain.path)


def read_class_folders(root: Path, licence: str = "the user's own") -> Iterator[Item]:
    """One class a sub-folder of `root`, named as its subject."""
    classes = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if not classes:
        raise FreezeAsGuardError(f"{root} has no sub-folders with images; make one a class, named as its subject")
    for folder_ in classes:
        paths = sorted(p for p in folder_.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise FreezeAsGuardError(f"{folder_} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        for path in paths:
            yield Item(slug(folder_.name), spoken(folder_.name), path, str(path), licence)


def read_listing(path: Path, licence: str = "the user's own") -> Iterator[Item]:
    """A row an image: path (relative to the listing), class, and where there are some subject and caption."""
    if not path.is_file():
        raise FreezeAsGuardError(f"{path} is missing; it should list path, class and caption")
    try:
        table = pd.read_json(path, lines=True) if path.suffix == ".jsonl" else pd.read_csv(path, keep_default_na=False)
    except ValueError as error:
        raise FreezeAsGuardError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
    if missing := sorted({"path", "class"} - set(table.columns)):
        raise FreezeAsGuardError(f"{path} has no column {missing[0]!r}; it needs path and class, and may have caption")
    for row in table.fillna("").astype(str).to_dict("records"):
        file = path.parent / row["path"]
        known = file.is_file()
        yield Item(
            slug(row["class"]),
            row.get("subject") or spoken(row["class"]),
            file if known else None,
            str(file),
            row.get("licence") or licence,
            row.get("caption", ""),
            status="ok" if known else "missing file",
        )


def hub(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """A data set through `datasets`, by pinned revision."""
    import datasets

    config = domain.hf
    assert config is not None
    try:
        loaded = datasets.load_dataset(config.repo, revision=config.revision, split=config.split)
    except Exception as error:  # the hub's, the builder's and the network's errors have no common class
        raise FreezeAsGuardError(
            f"cannot load {config.repo} (revision {config.revision}, split {config.split}): {error}. "
            "Download it elsewhere and set hf.repo to its folder"
        ) from error
    wanted = [c for c in (config.image_column, config.caption_column, config.class_column) if c]
    if missing := [column for column in wanted if column not in loaded.column_names]:
        raise FreezeAsGuardError(f"{config.repo} has no column {missing[0]!r}; it has {', '.join(loaded.column_names)}")
    loaded = loaded.cast_column(config.image_column, datasets.Image(decode=False))
    labels = loaded.features[config.class_column] if config.class_column else None
    for number, row in enumerate(loaded):
        if config.max_images is not None and number >= config.max_images:
            return
        name = config.class_name or row[config.class_column]
        if isinstance(labels, datasets.ClassLabel):
            name = labels.int2str(name)
        stored = row[config.image_column]
        content = stored["bytes"] if stored["bytes"] is not None else Path(stored["path"])
        caption = str(row[config.caption_column] or "") if config.caption_column else ""
        source = f"{config.repo}@{config.revision or 'local'}#{number}"
        yield Item(slug(str(name)), spoken(str(name)), content, source, config.licence, caption)


def archive(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """A zip of class folders, unpacked safely; with a captions.csv or metadata.jsonl inside it, that listing."""
    from freezeasguard.data.download import Limits, fetch_to_file, unpack_zip, verify_sha256

    config = domain.archive
    assert config is not None
    path = config.path or downloads / "archive.zip"
    if config.url is not None and not path.is_file():
        fetch_to_file(config.url, path, Limits(config.max_bytes, config.timeout_s, config.allow_private))
    if not path.is_file():
        raise FreezeAsGuardError(f"{path} is missing; set archive.path to the zip, or archive.url to fetch it")
    if config.sha256 is not None:
        verify_sha256(path, config.sha256)
    unpacked = downloads / "unpacked"
    unpack_zip(path, unpacked, max_bytes=config.max_unpacked_bytes)
    licence = "as the archive's publisher states"
    for listing in ("captions.csv", "metadata.jsonl"):
        for found in sorted(unpacked.rglob(listing)):
            yield from read_listing(found, licence)
            return
    root = unpacked
    while (inner := _only_folder(root)) and not any(p.suffix.lower() in IMAGE_SUFFIXES for p in inner.iterdir()):
        root = inner  # archives often wrap everything in one folder
    yield from read_class_folders(root, licence)


def _only_folder(root: Path) -> Path | None:
    entries = [p for p in root.iterdir() if not p.name.startswith((".", "__"))]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else None


def crawled(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """What the crawl has brought, now and before; failures keep their reason."""
    from freezeasguard.data.web_crawl import crawl

    config = domain.crawl
    assert config is not None
    for record in crawl(config, downloads):
        if record.class_name not in config.classes:
            continue
        yield Item(
            slug(record.class_name),
            config.classes[record.class_name].subject or spoken(record.class_name),
            downloads / record.file if record.status == "ok" else None,
            record.url,
            f"{config.engine} filter: {config.licence}" if config.licence else "not stated",
            page=record.page,
            robots=record.robots,
            time=record.time,
            status=record.status,
        )


SOURCES: dict[str, Callable[[Domain, Path, int], Iterator[Item]]] = {
    "embedded-figures": embedded_figures,
    "embedded-illustrators": embedded_illustrators,
    "embedded-explicit": embedded_explicit,
    "embedded-orl": embedded_orl,
    "folder": folder,
    "hf": hub,
    "archive": archive,
    "crawl": crawled,
}


def crawl_domain(domain: Domain, out: Path, downloads: Path, seed: int) -> pd.DataFrame:
    """Write images and a manifest; every image that was left out keeps its row and its reason.

    Files are named by the hash of their content, so that a rerun gives the same tree. What a class, or
    another class, already has - byte for byte or to the eye - is left out.

    Args:
        downloads: where sources keep what they fetched between runs.
    """
    clean = Cleaner(domain.clean, domain.size_px)
    rows: list[dict[str, object]] = []
    hashes: list[np.ndarray] = []
    hashed: list[int] = []
    seen: dict[str, str] = {}
    with folder_atomically(out) as temporary:
        for item in tqdm(SOURCES[domain.source](domain, downloads, seed), desc="collecting images", unit=" images"):
            row: dict[str, object] = dict.fromkeys(COLUMNS, "")
            row |= {"class": item.class_name, "subject": item.subject, "caption": item.caption, "page": item.page}
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
            rows.append({**row, "status": status})
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
    if item.image is None or isinstance(item.image, Image.Image):
        return item.image, item.status
    content = item.image.read_bytes() if isinstance(item.image, Path) else item.image
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
