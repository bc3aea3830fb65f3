"""What a first fetch wrote down: commits of the hub and SHA-256 of files that no one could know beforehand.

data/pinned.json is in git, so that the second machine gets what the first one got. The stage `settings` fills them in
wherever params.yaml says `pinned`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_json
from freezeasguard.reading import read_json
from freezeasguard.settings.blocks import Block
from freezeasguard.settings.names import PINNED

PINS = Path("data/pinned.json")
SUBJECTS = ("repo", "url", "model")
"""The field of a block that says what is pinned there."""
AnyBlock = TypeVar("AnyBlock", bound=Block)


def read_pins(path: Path = PINS) -> dict[str, str]:
    return read_json(path, f"restore it with `git checkout -- {path}`") if path.is_file() else {}


def pin(subject: str, value: str, path: Path = PINS) -> None:
    write_json(path, {**read_pins(path), subject: value})


def pinned(block: AnyBlock, pins: dict[str, str]) -> AnyBlock:
    """The block with every `pinned` in it replaced by what was pinned; what was not yet stays."""
    subject = next((getattr(block, key) for key in SUBJECTS if getattr(block, key, None)), "")

    def filled(value: object) -> object:
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        if isinstance(value, Block):
            return pinned(value, pins)
        return pins.get(str(subject), PINNED) if value == PINNED else value

    fields = {key: (getattr(block, key), filled(getattr(block, key))) for key in type(block).model_fields}
    return block.model_copy(update={key: new for key, (old, new) in fields.items() if new is not old})


def needs_pin(value: str | None, what: str) -> None:
    """Refuse to go on with something that only a first fetch can pin."""
    if value == PINNED:
        raise FreezeAsGuardError(f"{what} is not pinned yet; run `freezeasguard fetch`, and commit {PINS}")
