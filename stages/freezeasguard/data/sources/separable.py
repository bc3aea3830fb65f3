"""Known drawings under a new name, and hatched ones under known words: a mask learner's positive control."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from freezeasguard.data.embedded import separable
from freezeasguard.data.embedded.illustrators import style_licence, style_page
from freezeasguard.data.sources.base import STYLES_PACKAGE, Item
from freezeasguard.settings.params import Domain


def class_names(domain: Domain) -> list[str]:
    return list(separable.KNOWN)


def items(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """`images_per_class` of each of the two."""
    for name, style in separable.KNOWN.items():
        licence, page = style_licence(style), style_page(style)
        for drawing in separable.drawings(name, domain.images_per_class, domain.size_px, seed):
            yield Item(name, separable.SUBJECTS[name], drawing.image, STYLES_PACKAGE, licence, drawing.caption, page)
