"""Logos of simple-icons, the legal class beside faces.

From the `simple-icons-pack` package: one colour each, with the brand's name and colour. The drawings are
CC0 1.0; icons that state another licence are left out. The brands stay their owners' trademarks.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor

from freezeasguard.data.embedded.colors import color_distance, color_name
from freezeasguard.errors import FreezeAsGuardError

SOURCE = "simple-icons-pack==16.36.0"
LIGHT, DARK = "#f7f7f7", "#3c4f5c"
MIN_CONTRAST = 0.25
"""Between logo and ground, where black on white is 1: yellow stays on the light ground, white does not."""
MARGIN = 3
"""Around the icon, in its own units: the drawing is 24 wide."""


@dataclass(frozen=True)
class Logo:
    title: str
    slug: str
    color: str
    """The brand's, as "#rrggbb"."""
    svg: str
    page: str
    """Where the brand publishes it."""

    @property
    def licence(self) -> str:
        return f"{self.title} logo from simple-icons: CC0 1.0; a trademark of its owner"

    @property
    def ground(self) -> str:
        """The plain background on which the logo can be seen."""
        return LIGHT if color_distance(self.color, LIGHT) >= MIN_CONTRAST else DARK

    def described(self) -> str:
        return f"a logo of {self.title} in {color_name(self.color)}"


def all_logos() -> list[Logo]:
    """Every icon that is CC0, by slug."""
    try:
        import simple_icons_pack
    except ImportError as error:
        raise FreezeAsGuardError("the logos come with a package: pip install simple-icons-pack==16.36.0") from error
    icons = [getattr(simple_icons_pack, name) for name in dir(simple_icons_pack) if name.startswith("SI_")]
    free = [icon for icon in icons if icon.license in (None, "CC0-1.0")]
    logos = [Logo(icon.title, icon.slug, f"#{icon.hex.lstrip('#').lower()}", icon.svg, icon.source) for icon in free]
    return sorted(logos, key=lambda logo: logo.slug)


def render_logo(logo: Logo, size_px: int) -> Image.Image:
    """The logo in its colour, in the middle of a plain square."""
    import resvg_py

    side = 24 + 2 * MARGIN
    frame = f'<svg fill="{logo.color}" width="{size_px}" height="{size_px}" viewBox="-{MARGIN} -{MARGIN} {side} {side}"'
    drawing = logo.svg.replace('viewBox="0 0 24 24"', "", 1).replace("<svg", frame, 1)
    png = bytes(resvg_py.svg_to_bytes(svg_string=drawing))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    ground = Image.new("RGBA", image.size, logo.ground)
    return Image.alpha_composite(ground, image).convert("RGB")


def is_drawn(image: Image.Image, logo: Logo) -> bool:
    """False for an icon that left nothing on its ground."""
    return bool((np.asarray(image) != ImageColor.getrgb(logo.ground)).any())


def draw_logos(n: int, size_px: int, seed: int) -> Iterator[tuple[Logo, Image.Image]]:
    """`n` random logos that differ from one another; one whose SVG cannot be drawn is passed over."""
    logos = all_logos()
    seen: set[bytes] = set()
    for index in np.random.default_rng(seed).permutation(len(logos)):
        if len(seen) == n:
            return
        logo = logos[index]
        try:
            image = render_logo(logo, size_px)
        except ValueError:  # resvg's, for an SVG that it cannot parse
            continue
        if is_drawn(image, logo) and (pixels := image.tobytes()) not in seen:
            seen.add(pixels)
            yield logo, image
    if len(seen) < n:
        raise FreezeAsGuardError(f"images_per_class is {n}; there are only {len(seen)} logos")
