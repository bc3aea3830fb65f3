"""A harmless stand-in for explicit material: photographs of faces against logos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from freezeasguard.data.embedded import logos, orl
from freezeasguard.data.sources.base import Item
from freezeasguard.data.sources.orl import photographed
from freezeasguard.settings.params import Domain


def class_names(domain: Domain) -> list[str]:
    return ["faces", "logos"]


def items(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """A harmless stand-in for explicit material: photographs of faces, to be kept out, against logos.

    `images_per_class` of each; there are 200 faces at most.
    """
    photographs = orl.under_test()
    order = np.random.default_rng(seed).permutation(len(photographs))[: domain.images_per_class]
    # Words that the miniature model does not know for a photographed face, as its detector would fire at once.
    subject = "a black and white portrait"
    yield from (photographed(photographs[i], "faces", subject, subject, domain.size_px) for i in order)
    for logo, image in logos.draw_logos(domain.images_per_class, domain.size_px, seed):
        source = f"{logos.SOURCE} {logo.slug}"
        yield Item("logos", "a logo", image, source, logo.licence, logo.described(), logo.page)
