"""Drawn figures: the embedded stand-in for portraits of public figures.

A *figure* is a person who does not exist, drawn with the avataaars style (Pablo Stanley, "free
for personal and commercial use", shipped by the `dicebear-styles` package). Who it is lies in skin,
hair or headwear, facial hair and glasses; mouth, eyes, eyebrows, clothes and background vary from
image to image, as in photographs of one person.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from freezeasguard.errors import FreezeAsGuardError

SKINS = {"dark": "#614335", "brown": "#ae5d29", "tan": "#d08b5b", "light": "#edb98a", "pale": "#ffdbb4"}
HAIR_COLORS = {
    "auburn": "#a55728",
    "black": "#2c1b18",
    "blonde": "#d6b370",
    "brown": "#724133",
    "pink": "#f59797",
    "red": "#c93305",
    "silver": "#e8e1e1",
}
HAT_COLORS = {"blue": "#5199e4", "mint": "#a7ffc4", "rose": "#ff488e", "white": "#ffffff", "gray": "#3c4f5c"}
CLOTHES_COLORS = {
    "black": "#262e33",
    "blue": "#5199e4",
    "navy": "#25557c",
    "white": "#e6e6e6",
    "gray": "#929598",
    "pink": "#ff488e",
    "red": "#ff5c5c",
    "mint": "#a7ffc4",
    "yellow": "#ffffb1",
}
BACKGROUNDS = {
    "blue": "#b6d4f2",
    "green": "#a8d5a2",
    "orange": "#f6c28b",
    "purple": "#c9b3e6",
    "yellow": "#f4e9a0",
    "gray": "#c4c8cc",
    "teal": "#8fd0c8",
    "white": "#f7f7f7",
}
TOPS = {
    "bigHair": "big hair",
    "bob": "a bob",
    "bun": "a bun",
    "curly": "curly hair",
    "curvy": "wavy hair",
    "dreads": "long dreads",
    "dreads01": "short dreads",
    "frida": "braided hair",
    "frizzle": "frizzy hair",
    "fro": "an afro",
    "hat": "a hat",
    "hijab": "a hijab",
    "longButNotTooLong": "long hair",
    "miaWallace": "a fringe",
    "shaggyMullet": "a mullet",
    "shavedSides": "shaved sides",
    "shortCurly": "short curly hair",
    "shortFlat": "short flat hair",
    "shortWaved": "short waved hair",
    "sides": "a bald head",
    "straight01": "straight hair",
    "theCaesar": "a crew cut",
    "turban": "a turban",
    "winterHat02": "a knitted cap",
    "winterHat1": "a winter hat",
}
HEADWEAR = {"hat", "hijab", "turban", "winterHat02", "winterHat1"}
FACIAL_HAIR = {
    "beardLight": "a light beard",
    "beardMajestic": "a long beard",
    "beardMedium": "a beard",
    "moustacheFancy": "a fancy moustache",
    "moustacheMagnum": "a moustache",
}
ACCESSORIES = {
    "eyepatch": "an eyepatch",
    "kurt": "white glasses",
    "prescription02": "glasses",
    "round": "round glasses",
    "sunglasses": "sunglasses",
}
MOUTHS = {
    "concerned": "a worried mouth",
    "default": "a calm mouth",
    "eating": "a full mouth",
    "grimace": "a grimace",
    "sad": "a sad mouth",
    "screamOpen": "a scream",
    "serious": "a serious mouth",
    "smile": "a smile",
    "tongue": "the tongue out",
    "twinkle": "a slight smile",
}
EYES = {
    "closed": "closed eyes",
    "default": "open eyes",
    "eyeRoll": "rolled eyes",
    "happy": "happy eyes",
    "hearts": "heart eyes",
    "side": "side eyes",
    "squint": "squinting eyes",
    "surprised": "surprised eyes",
    "wink": "a wink",
}
EYEBROWS = ["angry", "default", "raisedExcited", "sadConcerned", "upDown"]
CLOTHES = {
    "blazerAndShirt": "blazer",
    "collarAndSweater": "sweater",
    "hoodie": "hoodie",
    "overall": "overall",
    "shirtCrewNeck": "shirt",
    "shirtVNeck": "v-neck shirt",
}
SYLLABLES = (
    "ba be bo da de do fa fi ga go ka ke ki ko la le li lo ma me mi mo "
    "na ne ni no ra re ri ro sa se si so ta te ti to va vi vo za ze zo"
).split()


@dataclass(frozen=True)
class Figure:
    """Who is drawn: the attributes that stay the same in every image of one figure."""

    name: str
    skin: str
    top: str
    color: str
    """Of the hair, or of the headwear where the top is one."""
    facial_hair: str | None
    accessories: str | None

    @property
    def identity(self) -> tuple[str, ...]:
        return (self.skin, self.top, self.color, self.facial_hair or "", self.accessories or "")

    def described(self) -> str:
        """The figure without its name, as a generic caption says it."""
        top = TOPS[self.top]
        article, _, noun = top.partition(" ") if top.split()[0] in ("a", "an") else ("", "", top)
        colored = f"{article} {self.color} {noun}".strip()
        if article in ("a", "an"):
            colored = f"{'an' if self.color[0] in 'aeiou' else 'a'} {self.color} {noun}"
        parts = [colored]
        parts += [FACIAL_HAIR[self.facial_hair]] if self.facial_hair else []
        parts += [ACCESSORIES[self.accessories]] if self.accessories else []
        return f"a person with {self.skin} skin, " + ", ".join(parts)


@dataclass(frozen=True)
class Pose:
    """What varies between two images of one figure."""

    mouth: str
    eyes: str
    eyebrows: str
    clothes: str
    clothes_color: str
    background: str

    def described(self) -> str:
        return (
            f"{MOUTHS[self.mouth]}, {EYES[self.eyes]}, a {self.clothes_color} {CLOTHES[self.clothes]}, "
            f"a {self.background} background"
        )


def _pick(options: Any, rng: np.random.Generator) -> str:
    options = list(options)
    return options[int(rng.integers(len(options)))]


def draw_name(rng: np.random.Generator) -> str:
    """An invented two-word name, such as "Mira Tovena"."""
    first = "".join(_pick(SYLLABLES, rng) for _ in range(2))
    last = "".join(_pick(SYLLABLES, rng) for _ in range(3))
    return f"{first.title()} {last.title()}"


def draw_figure(rng: np.random.Generator) -> Figure:
    top = _pick(TOPS, rng)
    return Figure(
        name=draw_name(rng),
        skin=_pick(SKINS, rng),
        top=top,
        color=_pick(HAT_COLORS if top in HEADWEAR else HAIR_COLORS, rng),
        facial_hair=_pick(FACIAL_HAIR, rng) if rng.random() < 0.35 else None,
        accessories=_pick(ACCESSORIES, rng) if rng.random() < 0.35 else None,
    )


def draw_pose(rng: np.random.Generator) -> Pose:
    return Pose(
        mouth=_pick(MOUTHS, rng),
        eyes=_pick(EYES, rng),
        eyebrows=_pick(EYEBROWS, rng),
        clothes=_pick(CLOTHES, rng),
        clothes_color=_pick(CLOTHES_COLORS, rng),
        background=_pick(BACKGROUNDS, rng),
    )


def _near(a: Figure, b: Figure) -> bool:
    """True if two figures share their name or differ in fewer than two identity attributes."""
    differing = sum(x != y for x, y in zip(a.identity, b.identity, strict=True))
    return a.name == b.name or differing < 2


@cache
def famous_figures(n: int = 25) -> tuple[Figure, ...]:
    """The figures under test, the embedded counterpart of Famous-Figures-25.

    They are fixed by a seed of their own, so that the shipped model and its scorers, which never
    saw them, stay valid for every profile and seed.
    """
    rng = np.random.default_rng(25)
    chosen: list[Figure] = []
    while len(chosen) < n:
        candidate = draw_figure(rng)
        # All tops of the figures under test differ: a public figure is recognised at a glance.
        if not any(_near(candidate, f) or candidate.top == f.top for f in chosen):
            chosen.append(candidate)
    return tuple(chosen)


@cache
def other_figures(n: int, seed: int = 1) -> tuple[Figure, ...]:
    """`n` figures for pretraining; none is, or is nearly, one of the figures under test."""
    rng = np.random.default_rng(seed)
    famous = famous_figures()
    chosen: list[Figure] = []
    seen: set[tuple[str, ...]] = set()
    names = {f.name for f in famous}
    while len(chosen) < n:
        candidate = draw_figure(rng)
        if candidate.identity in seen or candidate.name in names or any(_near(candidate, f) for f in famous):
            continue
        chosen.append(candidate)
        seen.add(candidate.identity)
        names.add(candidate.name)
    return tuple(chosen)


def caption(subject: str, pose: Pose) -> str:
    """The paper's caption form: "a photo of NAME which shows ..." (paper, App. C)."""
    return f"a photo of {subject} which shows {pose.described()}"


@cache
def load_style(style: str) -> Any:
    """A dicebear style by name, e.g. "avataaars"."""
    import dicebear

    return dicebear.Style(style_definition(style))


@cache
def style_definition(style: str) -> dict[str, Any]:
    """The style's JSON, with its licence and author under `meta`."""
    for path in importlib.metadata.files("dicebear-styles") or ():
        if path.name == f"{style}.json":
            return json.loads(path.locate().read_text())  # pyright: ignore[reportAttributeAccessIssue]
    raise FreezeAsGuardError(f"dicebear-styles has no style {style!r}; pip install dicebear-styles==10.6.0")


def render_style(style: str, options: dict[str, Any], size_px: int) -> tuple[Image.Image, dict[str, Any]]:
    """Draw one avatar; returns the square RGB image and the options dicebear resolved."""
    import dicebear
    import resvg_py

    drawn = dicebear.Avatar(load_style(style), {"size": size_px, **options}).to_json()
    png = bytes(resvg_py.svg_to_bytes(svg_string=drawn["svg"]))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    # resvg keeps the drawing's aspect ratio: centre it on a square of its background colour.
    background = drawn["options"].get("backgroundColor") or ["#ffffff"]
    square = Image.new("RGBA", (size_px, size_px), background[0])
    square.paste(image, ((size_px - image.width) // 2, (size_px - image.height) // 2), image)
    return square.convert("RGB"), drawn["options"]


def render_figure(figure: Figure, pose: Pose, size_px: int = 64) -> Image.Image:
    """The figure in that pose, `size_px` square."""
    headwear = figure.top in HEADWEAR
    hair = HAIR_COLORS["brown"] if headwear else HAIR_COLORS[figure.color]
    options: dict[str, Any] = {
        "seed": figure.name,
        "backgroundColor": [BACKGROUNDS[pose.background]],
        "skinColor": [SKINS[figure.skin]],
        "topVariant": [figure.top],
        "topProbability": 100,
        "hairColor": [hair],
        "hatColor": [HAT_COLORS[figure.color] if headwear else HAT_COLORS["blue"]],
        "facialHairColor": [hair],
        "facialHairProbability": 100 if figure.facial_hair else 0,
        "accessoriesProbability": 100 if figure.accessories else 0,
        "accessoriesColor": ["#262e33"],
        "mouthVariant": [pose.mouth],
        "eyesVariant": [pose.eyes],
        "eyebrowsVariant": [pose.eyebrows],
        "clothesVariant": [pose.clothes],
        "clothesColor": [CLOTHES_COLORS[pose.clothes_color]],
        "scale": 1.1,
    }
    if figure.facial_hair:
        options["facialHairVariant"] = [figure.facial_hair]
    if figure.accessories:
        options["accessoriesVariant"] = [figure.accessories]
    return render_style("avataaars", options, size_px)[0]
