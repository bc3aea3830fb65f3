"""Drawings in the styles of five real illustrators: the embedded stand-in for artworks.

Shipped by the `dicebear-styles` package, under their authors' licences: adventurer (Lisa Wischofsky),
micah (Micah Lanier) and personas (Draftbit) are CC BY 4.0, notionists (Zoish) and open-peeps (Pablo
Stanley) are CC0 1.0. Every image is a remix of its style; the manifest names author and licence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from freezeasguard.data.embedded.colors import color_distance, color_name
from freezeasguard.data.embedded.drawn_people import BACKGROUNDS, SKINS, render_style, style_definition

_SHORT, _LONG = "short {hair} hair", "long {hair} hair"
_SHIRT = "a {clothing} shirt"


def _all(words: str, variants: str) -> dict[str, str]:
    return dict.fromkeys(variants.split(), words)


LOOKS: dict[str, dict[str, dict[str, str]]] = {
    "adventurer": {
        "hair": {
            "long": _LONG,
            "short": _SHORT,
            **_all("a {hair} bun", "long10 long11 long12 long13 short05"),
            **_all("tied {hair} hair", "long15"),
            **_all("braided {hair} hair", "long16"),
            **_all("wavy {hair} hair", "long06 long17 long18 long22 long24"),
            **_all("two {hair} buns", "long23"),
            **_all("short curly {hair} hair", "short03 short07 short08 short17 short18"),
            **_all("a {hair} mohawk", "short12 short15"),
            **_all("a shaved head", "short19"),
        },
        "glasses": {"variant": "glasses", "variant01": "sunglasses"},
        "details": {
            "birthmark": "a mole",
            "blush": "pink cheeks",
            "freckles": "freckles",
            "mustache": "a {hair} moustache",
        },
        "earrings": {"variant": "earrings"},
    },
    "micah": {
        "hair": {
            "dannyPhantom": "a {hair} mullet",
            "dougFunny": "thin {hair} hair",
            "fonze": _SHORT,
            "full": _LONG,
            "mrClean": "a bald head",
            "mrT": "a {hair} mohawk",
            "pixie": "a {hair} bob",
            "turban": "a {hair} turban",
        },
        "facialHair": {"beard": "a {facialHair} beard", "scruff": "a light beard"},
        "glasses": {"round": "round {glasses} glasses", "square": "square {glasses} glasses"},
        "mouth": {
            **_all("a sad mouth", "frown sad"),
            "laughing": "a laugh",
            "nervous": "a grimace",
            "pucker": "a kiss",
            "smile": "a smile",
            "smirk": "a slight smile",
            "surprised": "a surprised mouth",
        },
        "clothes": _all("a {shirt} shirt", "collared crew open"),
    },
    "notionists": {
        "hair": {
            "variant": "short black hair",
            **_all("long black hair", "variant02 variant04 variant08 variant10 variant23 variant28"),
            **_all("long black hair", "variant36 variant37 variant41 variant46 variant58"),
            **_all("a black bun", "variant29 variant30 variant48 variant57"),
            **_all("tied black hair", "variant39 variant45 variant47"),
            **_all("curly black hair", "variant20 variant33"),
            **_all("spiky black hair", "variant50 variant51 variant52 variant53"),
            **_all("two black buns", "variant59"),
            **_all("a cap", "hat variant14"),
            **_all("a turban", "variant61"),
            **_all("a hijab", "variant62 variant63"),
        },
        "glasses": {"variant": "sunglasses", **_all("glasses", "variant03 variant08 variant11")},
        "beard": {
            "variant": "a moustache",
            **_all("a beard", "variant01 variant02"),
            **_all("a short beard", "variant08 variant11 variant12"),
        },
        "gesture": {
            **_all("a raised hand", "hand ok okLongArm waveLongArm"),
            **_all("a phone", "handPhone"),
            **_all("a pointing hand", "point pointLongArm"),
            **_all("two raised hands", "waveLongArms waveOkLongArms wavePointLongArms"),
        },
    },
    "open-peeps": {
        "head": {
            "afro": "a black afro",
            "longAfro": "a big black afro",
            "bangs": "a {headContrast} fringe",
            **_all("a black fringe", "bangs2 mediumBangs mediumBangs3 longBangs"),
            "mediumBangs2": "a {headContrast} fringe",
            "bantuKnots": "black knots",
            "bear": "the head of a bear",
            **_all("a black bun", "bun bun2"),
            "buns": "black buns",
            "cornrows": "tied {headContrast} hair",
            "cornrows2": "tied black hair",
            "dreads": "black dreads",
            **_all("flat black hair", "flatTop flatTopLong"),
            "grayBun": "a {headContrast} bun",
            **_all("short {headContrast} hair", "grayMedium grayShort short4"),
            "hatBeanie": "a {clothing} knitted cap",
            "hatHip": "a black hat",
            "hijab": "a hijab",
            **_all("long black hair", "long mediumStraight medium2 medium3"),
            "longCurly": "long curly black hair",
            "medium1": "a black bob",
            "mohawk": "a {headContrast} mohawk",
            "noHair": "a bald head",
            "pomp": "short black hair",
            "shaved": "shaved sides",
            "short": "short black hair",
            "turban": "a {clothing} turban",
            "twists": "black twists",
        },
        "expression": {
            **_all("an angry face", "angryWithFang rage veryAngry"),
            **_all("a calm face", "blank calm solemn"),
            **_all("closed eyes", "eyesClosed"),
            **_all("a worried face", "concerned concernedFear fear hectic"),
            **_all("a serious face", "contempt driven serious suspicious"),
            **_all("a happy face", "awe cheeky cute eatingHappy"),
            **_all("one eye", "cyclops"),
            **_all("three eyes", "monster"),
            **_all("an open mouth", "explaining"),
            **_all("heart eyes", "lovingGrin"),
            **_all("a smile", "smile"),
            **_all("a big smile", "smileBig smileLOL smileTeethGap"),
            **_all("an old face", "old"),
            **_all("a tired face", "tired"),
        },
        "accessories": {"eyepatch": "an eyepatch", "glasses": "glasses", "sunglasses": "sunglasses"},
        "facialHair": {**_all("a beard", "chin full"), "goatee": "a short beard", "moustache": "a moustache"},
        "mask": _all("a mask", "medicalMask respirator"),
    },
    "personas": {
        "hair": {
            "bald": "a bald head",
            "balding": "thin {hair} hair",
            "beanie": "a knitted cap",
            **_all("a {hair} bob", "bobBangs bobCut"),
            **_all("a {hair} bun", "bunUndercut straightBun"),
            "buzzcut": "a {hair} crew cut",
            "cap": "a cap",
            "curly": "curly {hair} hair",
            "curlyBun": "a curly {hair} bun",
            "curlyHighTop": "short curly {hair} hair",
            **_all(_LONG, "extraLong long"),
            **_all(_SHORT, "fade shortCombover shortComboverChops"),
            "mohawk": "a {hair} mohawk",
            "pigtails": "tied {hair} hair",
            "sideShave": "a {hair} fringe",
        },
        "eyes": {
            "glasses": "glasses",
            "happy": "happy eyes",
            "open": "open eyes",
            "sleep": "closed eyes",
            "sunglasses": "sunglasses",
            "wink": "a wink",
        },
        "mouth": {
            "bigSmile": "a big smile",
            "frown": "a sad mouth",
            "lips": "red lips",
            "pacifier": "a pacifier",
            "smile": "a smile",
            "smirk": "a slight smile",
            "surprise": "a surprised mouth",
        },
        "facialHair": {
            "beardMustache": "a {facialHair} beard",
            **_all("a short beard", "goatee soulPatch"),
            **_all("a {facialHair} moustache", "pyramid walrus"),
            "shadow": "a light beard",
        },
        "clothes": {"checkered": "a plaid {clothing} shirt", **_all(_SHIRT, "rounded small squared")},
    },
}
"""Per style and part, the words for its variants; `{hair}` stands for the colour of the hair.

"long" speaks for "long01" to "long26" where these have no words of their own. Parts that are only numbered
and too small to tell apart in words (mouths and eyes of adventurer and notionists) are left out.
"""
MAX_PHRASES = 4
"""Of a caption, in the order of `LOOKS`: with more, captions would not fit the miniature text tower's 48 tokens."""
STYLES = tuple(LOOKS)


@dataclass(frozen=True)
class Drawing:
    image: Image.Image
    caption: str


def artist(style: str) -> str:
    """The style's creator as captions call them; a web address after the name is dropped."""
    return style_definition(style)["meta"]["creator"]["name"].split(" - ")[0]


def style_licence(style: str) -> str:
    meta = style_definition(style)["meta"]
    return f"{style} by {meta['creator']['name']}: {meta['license']['name']}"


def style_page(style: str) -> str:
    """Where the style's original was published."""
    return style_definition(style)["meta"]["source"]["url"]


def skin_name(hex_color: str) -> str:
    return min(SKINS, key=lambda name: color_distance(hex_color, SKINS[name]))


def described(style: str, options: dict[str, Any]) -> str:
    """The person drawn, in words, from the options that dicebear resolved."""
    colors = {
        key.removesuffix("Color"): color_name(value[0]) for key, value in options.items() if _is_color(key, value)
    }
    parts = []
    for part, words in LOOKS[style].items():
        variant = options.get(f"{part}Variant", "")
        phrase = words.get(variant) or words.get(variant.rstrip("0123456789"))
        parts += [phrase.format_map(colors)] if phrase else []
    # micah calls the skin "base"; notionists leaves it white
    skin = options.get("skinColor") or options.get("baseColor")
    person = f"a person with {skin_name(skin[0])} skin, " if skin else "a person with "
    return re.sub(r"\ba (?=[aeiou])", "an ", person + ", ".join(parts[:MAX_PHRASES]))


def _is_color(key: str, value: object) -> bool:
    return key.endswith("Color") and isinstance(value, list) and len(value) > 0


def on_plain_backgrounds(
    style: str, n: int, size_px: int, name: str, rng: np.random.Generator
) -> Iterator[tuple[Image.Image, dict[str, Any], str]]:
    """`n` drawings that differ from one another, with the options that dicebear resolved and the background's name.

    Args:
        name: of the series; what is drawn follows from it, and the backgrounds from `rng`.
    """
    seen: set[bytes] = set()
    index = 0
    while len(seen) < n:
        background = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
        options = {"seed": f"{name}-{index}", "backgroundColor": [BACKGROUNDS[background]]}
        index += 1
        image, resolved = render_style(style, options, size_px)
        if (pixels := image.tobytes()) not in seen:
            seen.add(pixels)
            yield image, resolved, background


def drawings(style: str, n: int, size_px: int, seed: int) -> Iterator[Drawing]:
    """`n` drawings that differ from one another, on plain backgrounds."""
    rng = np.random.default_rng([seed, STYLES.index(style)])
    for image, options, background in on_plain_backgrounds(style, n, size_px, f"{style}-{seed}", rng):
        text = f"a drawing by {artist(style)} of {described(style, options)}, on a {background} background"
        yield Drawing(image, text)
