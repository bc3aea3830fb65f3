"""The rules of every text of params.yaml that becomes part of a command, a path, or a request.

DVC puts names into shell commands and paths as they are (dvc.yaml), so nothing may be in one that a shell reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from freezeasguard.data.names import is_class_name


def _must(be: Callable[[str], object], words: str) -> AfterValidator:
    """The whole text is as it must be, or `words` say how; pydantic's own message would show a pattern."""

    def check(text: str) -> str:
        if not be(text):
            raise ValueError(words)
        return text

    return AfterValidator(check)


def _matching(pattern: str, words: str) -> AfterValidator:
    return _must(re.compile(pattern).fullmatch, words)


Name = Annotated[
    str,
    _matching(
        r"[a-z0-9][a-z0-9._-]{0,59}",
        "must be a name: a small letter or digit, then small letters, digits, '.', '_' and '-', 60 at most",
    ),
]
"""Of a domain, a model, a case, an arm, a method's block or a profile: part of paths and of stage names."""
ClassName = Annotated[
    str,
    _must(
        is_class_name,
        "must be a class's name: a letter or digit, then also blanks and - _ . , ', at most 100 and 200 bytes",
    ),
]
"""Its slug is a folder. Letters of any script: it is no part of a command."""
HUB_ID = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?"
HubId = Annotated[str, _matching(HUB_ID, "must be a hub id, OWNER/NAME")]
PINNED = "pinned"
"""In the place of a commit or hash that nobody knew beforehand: the first `freezeasguard fetch` writes it down."""
Commit = Annotated[
    str,
    _matching(
        rf"[0-9a-f]{{40}}|{PINNED}",
        "must be a commit of the hub, 40 digits of 0-9 and a-f (on its page, under Files, History): "
        "a branch or a tag moves",
    ),
]
Sha256 = Annotated[
    str, _matching(rf"[0-9a-f]{{64}}|{PINNED}", "must be a SHA-256, 64 digits of 0-9 and a-f (`sha256sum FILE`)")
]


def _local(path: Path) -> Path:
    text = str(path)
    # DVC watches some of them: it fills in ${}, and takes https: and remote: for other machines.
    if text in (".", "") or len(text) > 1000 or re.match(r"[A-Za-z][\w+.-]*:", text) or re.search(r"[${}]", text):
        raise ValueError("must be a path on this machine, without $, {, } and a leading SCHEME:")
    return path


LocalPath = Annotated[Path, AfterValidator(_local)]
