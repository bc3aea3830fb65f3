"""The manifest of a domain's images: one row an image that was ever met, kept or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from freezeasguard.reading import read_table

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "manifest.csv"
COLUMNS = (
    "path class subject caption source page licence robots sha256 source_sha256 bytes width height time status".split()
)


def read_manifest(raw: Path) -> pd.DataFrame:
    """The manifest's rows as text; a missing or torn file says which stage writes it."""
    return read_table(raw / MANIFEST, f"run `dvc repro -f crawl@{raw.name}`", COLUMNS)
