"""What every source yields: an image, its class, and what is known of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
STYLES_PACKAGE = "dicebear-styles==10.6.0"


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


def as_utf8(text: str) -> str:
    """Half characters, which names of files and JSON may hold, written out: a manifest cannot hold them."""
    return text.encode("utf-8", "backslashreplace").decode()


def is_inside(path: Path, *roots: Path | str) -> bool:
    """By its name alone: what a foreign listing calls `..` or absolute is judged before anything is touched."""
    return any(Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)) for root in roots)


def spoken(name: str) -> str:
    """A class's name as captions say it: "jane_doe" -> "Jane Doe"."""
    return name.replace("_", " ").replace("-", " ").title()
