"""Files that are whole or absent: write under a temporary name, then rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from freezeasguard.errors import FreezeAsGuardError


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it replaces `path`, on any error nothing is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on success it replaces `path`, on error nothing is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _explained(error: OSError, path: Path) -> Exception:
    if error.errno == 28:  # ENOSPC
        free = shutil.disk_usage(path.parent).free // 2**20
        return FreezeAsGuardError(
            f"the disk is full ({free} MiB free) while writing {path}; nothing was left half-written. "
            "Free some space (`dvc gc -w` drops unused cache) and run `dvc repro` again"
        )
    return error


def write_json(path: Path, value: Any) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise FreezeAsGuardError(f"{path} is missing; {remedy}") from None
    except json.JSONDecodeError as error:
        raise FreezeAsGuardError(f"{path} is not JSON ({error}); {remedy}") from error
