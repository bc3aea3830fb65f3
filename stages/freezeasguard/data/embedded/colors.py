"""Words for colours, and how far apart two colours look."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import ImageColor

COLORS: dict[str, tuple[str, ...]] = {
    "black": ("#000000", "#121214", "#2b2b2e"),
    "gray": ("#48484b", "#5c5f66", "#929598", "#b4b8bd"),
    "white": ("#ffffff", "#e8e8ea"),
    "red": ("#ff1a1a", "#d31e1e", "#a01818"),
    "orange": ("#ff8800", "#f27a4a", "#e0701e", "#f6c28b"),
    "yellow": ("#ffd500", "#f5e06a", "#ffeba4", "#e5d7a3"),
    "green": ("#00b140", "#3f9c35", "#1f5c33", "#7bd88a", "#a4d320", "#a7ffc4"),
    "teal": ("#00a79d", "#0b6b70", "#54d7c7", "#90d8da"),
    "blue": ("#0000ff", "#0055ff", "#2a6fc9", "#1da1f2", "#6bc4ee", "#b6d4f2"),
    "navy": ("#1b2a5c", "#0a1a33", "#25557c"),
    "purple": ("#7b2fbe", "#5a2f6e", "#5b3df5", "#9287ff", "#c9b3e6"),
    "pink": ("#ff2e93", "#e16381", "#f7a8c4", "#ffe0e6"),
    "brown": ("#6b4423", "#4a2a18", "#a0622e", "#c69c6d"),
}
"""Plain names, each with a few shades; the captions of the drawn figures use the same words."""


@cache
def oklab(hex_color: str) -> np.ndarray:
    """Oklab lightness and opponent colours of an sRGB colour (B. Ottosson, 2020).

    Not CIE L*a*b*, whose hue turns purple along blue: it called #0080ff purple.
    """
    srgb = np.array(ImageColor.getrgb(hex_color)[:3]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    opponents = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.array(opponents) @ np.cbrt(np.array(cones) @ linear)


def color_distance(a: str, b: str) -> float:
    """How different two colours look; black to white is 1. Hue counts twice, as in CSS's deltaEOK2."""
    return float(np.linalg.norm((oklab(a) - oklab(b)) * [1, 2, 2]))


@cache
def color_name(hex_color: str) -> str:
    """The plain name whose nearest shade looks most like the colour."""
    return min(COLORS, key=lambda name: min(color_distance(hex_color, shade) for shade in COLORS[name]))
