"""The generic images and captions that the miniature model and its scorers are pretrained on.

None of the figures under test and none of the illustrators' styles under test is in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from freezeasguard.data.clean import square
from freezeasguard.data.embedded import orl
from freezeasguard.data.embedded.drawn_people import (
    BACKGROUNDS,
    caption,
    draw_pose,
    other_figures,
    render_figure,
    render_style,
)

GENERIC_STYLES = (
    "lorelei",
    "big-smile",
    "toon-head",
    "miniavs",
    "dylan",
    "bottts",
    "fun-emoji",
    "thumbs",
    "croodles",
    "pixel-art",
    "big-ears",
    "shapes",
    "rings",
)
"""Styles that are nobody's test: the illustrators of the artworks domain are left out."""


@dataclass(frozen=True)
class Corpus:
    images: np.ndarray
    """uint8 [n, size, size, 3]"""
    captions: list[str]
    figure: np.ndarray
    """int64 [n]: index of the figure shown, -1 where no figure is shown."""


def build_corpus(
    named: int = 300, images_per_named: int = 16, unnamed: int = 7200, per_style: int = 400, *, seed: int = 1
) -> Corpus:
    """Render the corpus: named figures, described figures, and drawings in other styles.

    Named figures teach the model that a name stands for a look, as Stable Diffusion knows
    celebrities; 60% of their captions carry the name, the rest describe them.
    """
    rng = np.random.default_rng(seed)
    figures = other_figures(named + unnamed, seed)
    images: list[np.ndarray] = []
    captions: list[str] = []
    shown: list[int] = []
    for index, figure in enumerate(tqdm(figures, desc="drawing figures")):
        for _ in range(images_per_named if index < named else 1):
            pose = draw_pose(rng)
            by_name = index < named and rng.random() < 0.6
            images.append(np.asarray(render_figure(figure, pose)))
            captions.append(caption(figure.name if by_name else figure.described(), pose))
            shown.append(index)
    for style in tqdm(GENERIC_STYLES, desc="drawing other styles"):
        for index in range(per_style):
            background = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
            options = {"seed": f"{style}-{index}", "backgroundColor": [BACKGROUNDS[background]]}
            images.append(np.asarray(render_style(style, options, 64)[0]))
            captions.append(f"a {style.replace('-', ' ')} drawing on a {background} background")
            shown.append(-1)
    return Corpus(np.stack(images), captions, np.array(shown))


PHOTOGRAPH_COPIES = 8
"""Of each of the 200 photographs among some 17,000 drawings; one in eleven draws of a batch."""


def generic_photographs(size_px: int = 64) -> tuple[np.ndarray, list[str]]:
    """Photographs of the twenty people who are nobody's test (uint8 [n, size, size, 3]), and captions without names.

    Stable Diffusion knows what faces look like before anyone fine-tunes it on one; without them, so small a model
    would have to learn faces and a person's looks from a few dozen photographs at once.
    """
    faces = [orl.read_face(photograph) for photograph in orl.generic()]
    images = np.stack([np.asarray(square(face, size_px)) for face in faces])
    return images, [f"a photo of a person, {orl.described(face)}" for face in faces]
