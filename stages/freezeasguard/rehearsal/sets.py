"""Small data sets in their release layouts, of images that ship in packages: nothing is downloaded, nobody is shown
but the public ORL research faces, and nothing explicit is in them."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

from PIL import Image

from freezeasguard.files import folder_atomically, write_atomically

Pictures = Iterator[tuple[str, str, Image.Image]]
"""Class, caption, image."""


def faces(classes: Sequence[str], n: int, size_px: int) -> Pictures:
    """ORL's photographs, `n` (at most ten) of each; the names that a profile uses are lent to other people's faces."""
    from freezeasguard.data.embedded import orl

    by_person: dict[int, list[orl.Photograph]] = {}
    for photograph in orl.photographs():
        by_person.setdefault(photograph.person, []).append(photograph)
    for name, photographs in zip(classes, by_person.values(), strict=False):
        for photograph in photographs[:n]:
            image = orl.read_face(photograph)
            caption = f"a photo of {name.replace('_', ' ')}, {orl.described(image)}"
            yield name, caption, image.resize((size_px, size_px), Image.Resampling.BICUBIC)


def drawings(classes: Sequence[str], n: int, size_px: int) -> Pictures:
    """Illustrators' drawings; there are five of them, and a class more is another draw of the first."""
    from freezeasguard.data.embedded.illustrators import STYLES
    from freezeasguard.data.embedded.illustrators import drawings as drawn

    for seed, (name, style) in enumerate(zip(classes, cycle(STYLES), strict=False)):
        for drawing in drawn(style, n, size_px, seed):
            yield name, drawing.caption, drawing.image


def logos(classes: Sequence[str], n: int, size_px: int) -> Pictures:
    """Logos of simple-icons; each class its own."""
    from freezeasguard.data.embedded.logos import draw_logos

    drawn = draw_logos(n * len(classes), size_px, 0)
    for name in classes:
        for logo, image in islice(drawn, n):
            yield name, logo.described(), image


def ff25(path: Path, pictures: Pictures) -> Path:
    """The authors' archive: `ff25/{train,test}/NAME/*.png`, each half with metadata.csv (file_name, text, name)."""
    if path.is_file():
        return path
    listed: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    with write_atomically(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for number, (name, caption, image) in enumerate(pictures):
            half = "test" if number % 4 == 3 else "train"
            file = f"{name}/{number:05}.png"
            archive.writestr(f"ff25/{half}/{file}", png(image))
            listed[half].append((file, caption, name))
        for half, rows in listed.items():
            text = io.StringIO()
            csv.writer(text).writerows([("file_name", "text", "name"), *rows])
            archive.writestr(f"ff25/{half}/metadata.csv", text.getvalue())
    return path


def hub_parquet(
    folder: Path, pictures: Pictures, image: str, caption: str | None, class_: str | None, split: str
) -> Path:
    """A data set of the hub: `data/SPLIT-00000-of-00001.parquet`, images as bytes and path, texts beside them."""
    import datasets

    if not folder.is_dir():
        rows = [
            {image: {"bytes": png(picture), "path": f"{number:05}.png"}, caption: text, class_: name}
            for number, (name, text, picture) in enumerate(pictures)
        ]
        rows = [{key: value for key, value in row.items() if key} for row in rows]
        with folder_atomically(folder) as temporary:
            (temporary / "data").mkdir()
            made = datasets.Dataset.from_list(rows).cast_column(image, datasets.Image())
            made.to_parquet(temporary / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def class_folders(folder: Path, pictures: Pictures) -> Path:
    """A user's folder: one sub-folder a class."""
    if not folder.is_dir():
        with folder_atomically(folder) as temporary:
            for number, (name, _, image) in enumerate(pictures):
                (temporary / name).mkdir(exist_ok=True)
                image.save(temporary / name / f"{number:05}.png")
    return folder


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
