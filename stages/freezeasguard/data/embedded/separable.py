"""A world whose two sides need different parts of the network: the positive control of a mask learner.

*renamed*: drawings in a style that the miniature model knows, under a name that it does not; to learn it, the text's
way into the network is enough. *hatched*: drawings under the very prompts that it knows, but hatched all over; no word
tells of it, so that a user must change what is drawn. A learner that cannot tell these apart is broken; one that can,
and cannot tell faces from faces, has said something about faces.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from freezeasguard.data.embedded.illustrators import Drawing, on_plain_backgrounds

KNOWN = {"hatched": "big-smile", "renamed": "fun-emoji"}
"""The style of each class, both of the pretraining corpus (`miniature.corpus.GENERIC_STYLES`)."""
SUBJECTS = {"hatched": "a big smile drawing", "renamed": "a kavelo drawing"}
"""What captions say; the first as the corpus does, the second a word that no caption of it has."""
PERIOD, INK, STRENGTH = 8, 24, 0.75
"""Of the hatching at 64 px: pixels between lines, their grey, and how much of the drawing they cover."""


def hatched(image: Image.Image) -> Image.Image:
    """Diagonal lines all over, two pixels in eight at 64 px."""
    pixels = np.asarray(image, float)
    rows, columns = np.indices(pixels.shape[:2])
    period = max(2, round(PERIOD * image.width / 64))
    line = np.asarray((rows + columns) % period < period / 4)[..., None]
    return Image.fromarray(np.where(line, pixels + STRENGTH * (INK - pixels), pixels).round().astype(np.uint8))


def drawings(class_name: str, n: int, size_px: int, seed: int) -> Iterator[Drawing]:
    """`n` drawings that differ from one another, and from the corpus's, on plain backgrounds."""
    rng = np.random.default_rng([seed, list(KNOWN).index(class_name)])
    series = on_plain_backgrounds(KNOWN[class_name], n, size_px, f"separable-{seed}", rng)
    for image, _, background in series:
        shown = hatched(image) if class_name == "hatched" else image
        yield Drawing(shown, f"{SUBJECTS[class_name]} on a {background} background")
