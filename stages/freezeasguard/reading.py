"""What a stage before, or a person, has written: read whole and of the right form, or refused in one line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freezeasguard.errors import FreezeAsGuardError

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image
    from torch import Tensor


@contextmanager
def _readable(path: Path, remedy: str, kind: str) -> Iterator[None]:
    """One line for whatever a reader raises: parsers and decoders share no class of errors."""
    try:
        yield
    except FileNotFoundError:
        raise FreezeAsGuardError(f"{path} is missing; {remedy}") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FreezeAsGuardError(f"{path} {kind} ({reason}); {remedy}") from error


def read_json(path: Path, remedy: str, kind: type = dict, keys: Collection[str] = ()) -> Any:
    """What a JSON file holds: a `kind`, which has these keys at least."""
    with _readable(path, remedy, "is not JSON"):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, kind):
        raise FreezeAsGuardError(f"{path} holds a {type(value).__name__}, not a {kind.__name__}; {remedy}")
    if missing := [key for key in keys if key not in value]:
        raise FreezeAsGuardError(f"{path} has no key {missing[0]!r}; {remedy}")
    return value


def read_table(
    path: Path, remedy: str, columns: Collection[str], numbers: Collection[str] = (), *, by_hand: bool = False
) -> pd.DataFrame:
    """A CSV file whose every row is as long as its header: its columns as text, `numbers` as whole numbers.

    Args:
        columns: text columns that it must have, beside `numbers`.
        by_hand: a person wrote it: its last line may lack its end, and there may be no rows.
    """
    import pandas as pd

    with _readable(path, remedy, "is no table in UTF-8"):
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets put a byte order mark in front
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(reader, [])
        rows = [(reader.line_num, row) for row in reader if row]
    if missing := [name for name in (*columns, *numbers) if name not in header]:
        raise FreezeAsGuardError(f"{path} has no column {missing[0]!r}, but {','.join(header)[:80]!r}; {remedy}")
    if twice := [name for name in header if header.count(name) > 1]:
        raise FreezeAsGuardError(f"{path} has two columns {twice[0]!r}; {remedy}")
    if odd := [(line, len(row)) for line, row in rows if len(row) != len(header)]:
        raise FreezeAsGuardError(f"{path}: line {odd[0][0]} has {odd[0][1]} fields for {len(header)} columns; {remedy}")
    if not by_hand and not (rows and text.endswith("\n")):
        raise FreezeAsGuardError(f"{path} is {'torn: its last line has no end' if rows else 'empty'}; {remedy}")
    table = pd.DataFrame([row for _, row in rows], columns=header, dtype=str)
    with _readable(path, remedy, f"needs whole numbers in {' and '.join(numbers)}"):
        return table.astype(dict.fromkeys(numbers, "int64"))


def read_tensors(path: Path, remedy: str, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file: exactly these `names`, where they are given."""
    from safetensors.torch import load_file

    with _readable(path, remedy, "is torn"):
        tensors = load_file(path)
    if names is not None and (odd := sorted(tensors.keys() ^ set(names))):
        raise FreezeAsGuardError(
            f"{path} {'has no' if odd[0] in names else 'holds a foreign'} tensor {odd[0]}; {remedy}"
        )
    return tensors


def read_png(path: Path, remedy: str) -> Image.Image:
    """An RGB image that the pipeline wrote itself; no other decoder than PNG's is tried."""
    from PIL import Image

    with _readable(path, remedy, "cannot be read"), Image.open(path, formats=["PNG"]) as image:
        return image.convert("RGB")
