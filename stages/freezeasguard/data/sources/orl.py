"""Photographs of twenty people under pseudonyms (ORL)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from freezeasguard.data.clean import square
from freezeasguard.data.embedded import orl
from freezeasguard.data.sources.base import Item
from freezeasguard.settings.params import Domain


def items(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """20 people under pseudonyms, `images_per_class` photographs of each; there are ten at most."""
    for photograph in orl.under_test():
        if photograph.number <= domain.images_per_class:
            name = orl.pseudonyms()[photograph.person - 1]
            yield photographed(photograph, f"person-{photograph.person:02}", name, f"a photo of {name}", domain.size_px)


def photographed(photograph: orl.Photograph, class_name: str, subject: str, start: str, size_px: int) -> Item:
    face = orl.read_face(photograph)
    caption = f"{start}, {orl.described(face)}"
    return Item(class_name, subject, square(face, size_px), photograph.source, orl.LICENCE, caption)
