"""The sources by name: `domains.<name>.source` in params.yaml.

Light on purpose: params.yaml reads it without loading anything. A new source is one file - a module with
`items(domain, downloads, seed)` that yields `Item`s, and `class_names(domain)` if they are known before (None where
this domain's are not) - and one line here.
"""

from __future__ import annotations

from dataclasses import dataclass

PACKAGE = "freezeasguard.data.sources"
PARTS = "parts"
"""The source that is made of others."""
OF_ANY_IMAGES = ("fd_efficientnet_lite0", "clip_tiny")
"""Scores that need no knowledge of what is shown."""


@dataclass(frozen=True)
class Source:
    module: str
    """Below this package, or a dotted path of its own."""
    needs: str = ""
    """The key of the domain's block that describes it."""
    scores: tuple[str, ...] = OF_ANY_IMAGES
    """What a domain is scored with where params.yaml does not say; the first is the one a table argues with."""

    @property
    def import_path(self) -> str:
        return self.module if "." in self.module else f"{PACKAGE}.{self.module}"


SOURCES: dict[str, Source] = {
    "embedded-figures": Source("figures", scores=("recogniser", *OF_ANY_IMAGES)),
    "embedded-illustrators": Source("illustrators", scores=("style_efficientnet_lite0", *OF_ANY_IMAGES)),
    "embedded-explicit": Source(
        "explicit", scores=("nudenet_faces", "nudenet_faces_rate", "kd_efficientnet_lite0", *OF_ANY_IMAGES)
    ),
    "embedded-separable": Source("separable", scores=("style_efficientnet_lite0", *OF_ANY_IMAGES)),
    "embedded-orl": Source("orl", scores=("dlib", *OF_ANY_IMAGES)),
    "folder": Source("folder", needs="path"),
    "hf": Source("hub", needs="hf"),
    "archive": Source("archive", needs="archive"),
    "crawl": Source("web", needs="crawl"),
    PARTS: Source("parts", needs="parts"),
}
