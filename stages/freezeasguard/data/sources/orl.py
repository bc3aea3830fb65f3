"""Photographs of twenty people under pseudonyms (ORL)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from freezeasguard.data.clean import square
from freezeasguard.data.embedded import orl
from freezeasguard.data.sources.base import Item
from freezeasguard.settings.params import Domain


def class_names(domain: Domain) -> list[str]:
    return sorted({_class_name(photograph) for photograph in orl.under_test()})


def items(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """20 people under pseudonyms, `images_per_class` photographs of each; there are ten at most."""
    for photograph in orl.under_test():
        if photograph.number <= domain.images_per_class:
            name = orl.pseudonyms()[photograph.person - 1]
            yield photographed(photograph, _class_name(photograph), name, f"a photo of {name}", domain.size_px)


def _class_name(photograph: orl.Photograph) -> str:
    return f"person-{photograph.person:02}"


def photographed(photograph: orl.Photograph, class_name: str, subject: str, start: str, size_px: int) -> Item:
    face = orl.read_face(photograph)
    caption = f"{start}, {orl.described(face)}"
    return Item(class_name, subject, square(face, size_px), photograph.source, orl.LICENCE, caption)
