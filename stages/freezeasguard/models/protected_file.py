"""`protected.json` without torch: for what reads a mask's names and diagnostics, and no weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.reading import read_json
from freezeasguard.settings.blocks import Block

FORMAT = 3
"""1 and 2 held no digests: a reader could not tell a mask from what was left of it."""


class FrozenUnits(Block):
    """What is said of a tensor that is frozen in part."""

    model_config = ConfigDict(strict=True)
    shape: list[int]
    n_units: int
    n_frozen: int


class ProtectedFile(Block):
    """What `protected.json` holds: no key more, none less."""

    model_config = ConfigDict(strict=True)
    format: Literal[3]
    method: str
    model_sha256: str
    n_tensors: int
    granularity: Literal["tensor", "row", "element"]
    frozen: dict[str, list[int]]
    frozen_units: dict[str, FrozenUnits]
    mask_sha256: str
    """See `mask_digest`."""
    edited: dict[str, list[int]]
    edited_sha256: str
    """See `model_hash`."""
    settings: dict[str, Any]
    diagnostics: dict[str, Any]
    content_sha256: str
    """Of all the rest, so that what reads no weights also notices a change."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its `content_sha256`: the digest of its JSON, whatever the blanks and the order of keys."""
    rest = json.loads(json.dumps({key: value for key, value in content.items() if key != "content_sha256"}))
    text = json.dumps(rest, sort_keys=True)
    return {**content, "content_sha256": hashlib.sha256(text.encode()).hexdigest()}


def again(folder: Path) -> str:
    """The remedy for whatever is wrong with a protected-model folder."""
    return f"run the protection stage again (`dvc repro -f protect@{folder.parent.name}-{folder.name}`)"


def read_protected_file(folder: Path) -> dict[str, Any]:
    """`protected.json` as it stands: its format, keys, types and digest checked."""
    path = folder / "protected.json"
    content = read_json(path, again(folder))
    if content.get("format") != FORMAT:
        raise FreezeAsGuardError(
            f"{path} has format {content.get('format')}; this version reads {FORMAT}: {again(folder)}"
        )
    try:
        ProtectedFile.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        said = {"missing": "is missing", "extra_forbidden": "is no key of this format"}
        told = said.get(first["type"], f"is {str(first['input'])[:60]!r}")
        raise FreezeAsGuardError(f"{path}: {key} {told}; {again(folder)}") from error
    if sealed(content)["content_sha256"] != content["content_sha256"]:
        raise FreezeAsGuardError(f"{path} is not as it was written: its content_sha256 does not match; {again(folder)}")
    return content


def overlap(a: Collection[str], b: Collection[str]) -> float:
    """Share of `a`'s tensors that `b` freezes too; two random masks of ratio rho overlap by rho."""
    return len(set(a) & set(b)) / len(a) if a else 1.0
