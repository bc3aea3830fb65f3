"""Five illustrators' styles: the embedded artworks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from freezeasguard.data.embedded import illustrators
from freezeasguard.data.sources.base import STYLES_PACKAGE, Item
from freezeasguard.settings.params import Domain


def class_names(domain: Domain) -> list[str]:
    return list(illustrators.STYLES)


def items(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """Five illustrators, `images_per_class` drawings of each."""
    for style in illustrators.STYLES:
        licence, page = illustrators.style_licence(style), illustrators.style_page(style)
        for drawing in illustrators.drawings(style, domain.images_per_class, domain.size_px, seed):
            yield Item(style, illustrators.artist(style), drawing.image, STYLES_PACKAGE, licence, drawing.caption, page)
