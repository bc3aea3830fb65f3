"""The manifest of a domain's images: one row an image that was ever met, kept or not."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from freezeasguard.errors import FreezeAsGuardError

MANIFEST = "manifest.csv"
COLUMNS = (
    "path class subject caption source page licence robots sha256 source_sha256 bytes width height time status".split()
)


def read_manifest(raw: Path) -> pd.DataFrame:
    """The manifest's rows; a missing file says which stage writes it."""
    if not (raw / MANIFEST).is_file():
        raise FreezeAsGuardError(f"{raw / MANIFEST} is missing; run `dvc repro crawl`")
    return pd.read_csv(raw / MANIFEST, keep_default_na=False)
