"""Files that are whole or absent: written under a temporary name, then renamed.

A temporary name is `.NAME.PID.tmp` beside the file or folder, `.NAME.PID.old` for what is being replaced. `.dvcignore`
lists both, so that what a killed process leaves changes no folder's hash; the next stage removes it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from freezeasguard.errors import FreezeAsGuardError

DISK_IS_FULL = ("No space left on device", "inline_container.cc", "database or disk is full")
"""What safetensors, torch.save and SQLite say of it."""
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<kind>tmp|old)")


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it replaces `path`, on any error nothing is left behind."""
    temporary = _beside(path, "tmp")
    with explain_full_disk(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on success it replaces `path`, on error the old one stays."""
    temporary, old = _beside(path, "tmp"), _beside(path, "old")
    with explain_full_disk(path):
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
def explain_full_disk(path: Path) -> Iterator[None]:
    """Say what a full disk is: not all libraries report one by the system's own error."""
    try:
        yield
    except Exception as error:
        text = str(error)
        if getattr(error, "errno", None) != errno.ENOSPC and not any(words in text for words in DISK_IS_FULL):
            raise
        existing = next(p for p in path.absolute().parents if p.exists())
        raise FreezeAsGuardError(
            f"the disk is full ({shutil.disk_usage(existing).free // 2**20} MiB free) while writing {path}; nothing "
            "was left half-written. Free some space (`dvc gc -w` drops unused cache) and run `dvc repro` again"
        ) from error


def remove_leftovers(*roots: Path) -> None:
    """Remove what killed processes left under temporary names; what they were about to replace goes back.

    Called before this process writes: what bears its own number is of a dead one that had the same.
    """
    for root in roots:
        for folder, folders, files in os.walk(root):
            found = [match for name in (*folders, *files) if (match := TEMPORARY.fullmatch(name))]
            for match in found:
                if int(match["pid"]) == os.getpid() or not _is_running(int(match["pid"])):
                    _remove_leftover(Path(folder, match[0]), Path(folder, match["name"]), match["kind"])
            folders[:] = [name for name in folders if not TEMPORARY.fullmatch(name)]


def _remove_leftover(path: Path, target: Path, kind: str) -> None:
    with suppress(FileNotFoundError):  # another process may do the same
        if kind == "old" and not target.exists():
            os.replace(path, target)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; no process number at all
        return True
    return True


def link_or_copy(source: Path, target: Path) -> None:
    """The file in both places: by a link, or a copy on another disk or one that knows no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_json(path: Path, value: Any, *, sort_keys: bool = True) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=sort_keys, allow_nan=False) + "\n")


def fingerprint(*content: Any) -> str:
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:20]
