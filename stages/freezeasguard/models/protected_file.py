"""`protected.json` without torch: for what reads a mask's names and diagnostics, and no weights."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import read_json

FORMATS = {"tensor": 1, "row": 2, "element": 2}
"""Format 2 adds the tensors frozen in part, which a reader of format 1 would leave unprotected in silence."""


def read_protected_file(folder: Path) -> dict[str, Any]:
    """`protected.json` as it stands, its format checked."""
    path = folder / "protected.json"
    content = read_json(path, "write it with one of the protection stages, e.g. `dvc repro learn_mask`")
    if content.get("format") not in FORMATS.values():
        raise FreezeAsGuardError(f"{path} has format {content.get('format')}; this version reads 1 and 2")
    granularity = content.get("granularity", "tensor")
    if FORMATS.get(granularity) != content["format"]:
        raise FreezeAsGuardError(
            f"{path} has granularity {granularity!r}, which format {content['format']} does not know; "
            "run the protection stage again"
        )
    return content


def overlap(a: Collection[str], b: Collection[str]) -> float:
    """Share of `a`'s tensors that `b` freezes too; two random masks of ratio rho overlap by rho."""
    return len(set(a) & set(b)) / len(a) if a else 1.0
