"""The 25 drawn figures of the embedded portraits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from freezeasguard.data.embedded import drawn_people as figures
from freezeasguard.data.embedded import illustrators
from freezeasguard.data.names import slug
from freezeasguard.data.sources.base import STYLES_PACKAGE, Item
from freezeasguard.settings.params import Domain


def class_names(domain: Domain) -> list[str]:
    return [slug(figure.name) for figure in figures.famous_figures()]


def items(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
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
