"""What a class may be called: its name, of a user's or of a foreign listing, becomes the name of a folder."""

from __future__ import annotations

import re

CLASS_NAME = r"\w[\w .,'-]{0,99}"
"""Letters of any script: it leads nowhere else, and is no part of a command."""
MAX_BYTES = 200
"""Of the name in UTF-8, so that it fits into a file system's 255 with what is put around it."""


def is_class_name(text: str) -> bool:
    return re.fullmatch(CLASS_NAME, text) is not None and len(text.encode()) <= MAX_BYTES


def slug(text: str) -> str:
    """The folder of a class of this name: "Jane Doe" -> "jane-doe"."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
