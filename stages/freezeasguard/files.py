"""Files that are whole or absent: write under a temporary name, then rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from freezeasguard.errors import FreezeAsGuardError


def is_name(text: str) -> bool:
    """Whether a word of a user's or of a foreign listing may name a folder: it leads nowhere else, and fits."""
    return re.fullmatch(r"\w[\w .,'-]{0,99}", text) is not None and len(text.encode()) <= 200


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it replaces `path`, on any error nothing is left behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on success it replaces `path`, on error the old one stays."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    with _explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            if path.exists():
                os.replace(path, old)
            try:
                os.replace(temporary, path)
            except BaseException:
                if old.exists():
                    os.replace(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say what a full disk is: safetensors and torch.save report one in words of their own."""
    try:
        yield
    except Exception as error:
        text = str(error)
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text
        if not (full or "inline_container.cc" in text):
            raise
        existing = next(p for p in path.absolute().parents if p.exists())
        raise FreezeAsGuardError(
            f"the disk is full ({shutil.disk_usage(existing).free // 2**20} MiB free) while writing {path}; nothing "
            "was left half-written. Free some space (`dvc gc -w` drops unused cache) and run `dvc repro` again"
        ) from error


def write_json(path: Path, value: Any, *, sort_keys: bool = True) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=sort_keys, allow_nan=False) + "\n")


def read_json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise FreezeAsGuardError(f"{path} is missing; {remedy}") from None
    except json.JSONDecodeError as error:
        raise FreezeAsGuardError(f"{path} is not JSON ({error}); {remedy}") from error


def fingerprint(*content: Any) -> str:
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:20]
