"""The one reader of params.yaml: small, plain, finite values, checked against a block; else one line that says why.

Light, as every stage reads its device here. DVC reads the file too, by a parser of its own and before any of this.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from freezeasguard.errors import FreezeAsGuardError

MAX_BYTES = 2**18
MAX_NODES = 20_000
"""With every alias written out: a few lines of aliases of aliases stand for more than any memory holds."""
MAX_DEPTH = 20
MAX_TEXT = 5_000
MAX_PROBLEMS = 8
FRESH = "`freezeasguard profile tiny` writes a fresh one"
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""A newline too: a name or a prompt is one line, and so is an error that shows it."""

AnyBlock = TypeVar("AnyBlock", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The file's values; YAML 1.2, as DVC reads it."""
    return parse_yaml(_read_text(path), path)


def parse_yaml(text: str, path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML

    with yaml_errors(path):
        _weigh(YAML(typ="safe").parse(text), path)
        values = YAML(typ="safe").load(text)
    return plain(values, path)


@contextmanager
def yaml_errors(path: Path) -> Iterator[None]:
    """Say in one line what the parser says in five."""
    try:
        yield
    except FreezeAsGuardError:
        raise
    except Exception as error:  # the parser's own errors, and those of int and date, have no common class
        raise FreezeAsGuardError(f"{path} is no YAML that can be read: {_said_by_yaml(error)}; correct it") from None


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise FreezeAsGuardError(f"{path} has more than {MAX_BYTES} bytes, which no settings need; {FRESH}")
        return content.decode()
    except FileNotFoundError:
        raise FreezeAsGuardError(
            f"{path} is missing; run `freezeasguard profile tiny`, or change to the project's folder: "
            f"{path.absolute().parent} is none"
        ) from None
    except OSError as error:
        raise FreezeAsGuardError(f"{path} cannot be read ({error.strerror}); make it a readable file") from None
    except UnicodeDecodeError as error:
        raise FreezeAsGuardError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _weigh(events: Any, path: Path) -> None:
    """Refuse what is too large or too deep, from the parser's events, before anything is built of them."""
    total = 0
    weights: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []
    for event in events:
        kind, anchor = type(event).__name__, getattr(event, "anchor", None)
        if kind == "AliasEvent":
            within = any(anchor == other for other, _ in open_)  # of itself: it never ends
            total += MAX_NODES if within else weights.get(str(anchor), 1)
        elif kind == "ScalarEvent":
            weight = 1 + len(event.value) // 100
            total += weight
            weights |= {anchor: weight} if anchor else {}
        elif kind.endswith("StartEvent") and kind[:3] in ("Map", "Seq"):
            open_.append((anchor, total))
            total += 1
        elif kind.endswith("EndEvent") and kind[:3] in ("Map", "Seq"):
            closed, before = open_.pop()
            weights |= {closed: total - before} if closed else {}
        if total > MAX_NODES or len(open_) > MAX_DEPTH:
            what = f"nests more than {MAX_DEPTH} deep" if len(open_) > MAX_DEPTH else f"holds over {MAX_NODES} values"
            raise FreezeAsGuardError(f"{path} {what} once its aliases are written out; {FRESH}")


def _said_by_yaml(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    said = " ".join(str(getattr(error, "problem", None) or error).split())[:200]
    return f"{said} (line {mark.line + 1})" if mark is not None else said


def plain(values: Any, source: Path) -> dict[str, Any]:
    """`values`, if it is a mapping of texts, finite numbers, true, false, null, lists and mappings by text."""
    if not isinstance(values, dict):
        raise FreezeAsGuardError(f"{source} holds no mapping; {FRESH}")
    _refuse_odd(values, "", 0, source)
    return values


def _refuse_odd(value: Any, key: str, depth: int, source: Path) -> None:
    odd = ""
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                odd = f"has the key {shown(name)}, which is no text; quote it"
            elif not name or len(name) > 200 or CONTROL.search(name):
                odd = f"has the key {shown(name)}; a key is one line of 1 to 200 characters"
            else:
                _refuse_odd(inner, f"{key}.{name}".lstrip("."), depth + 1, source)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_odd(inner, f"{key}.{index}", depth + 1, source)
    elif isinstance(value, str):
        if len(value) > MAX_TEXT or CONTROL.search(value):
            odd = f"is {shown(value)}; a text is one line of at most {MAX_TEXT} characters"
    elif isinstance(value, float):
        odd = "" if math.isfinite(value) else f"is {value}; a number must be finite"
    elif isinstance(value, int):
        odd = "" if abs(value) < 2**63 else "is a number of more than 63 bits; write a smaller one"
    elif value is not None:
        odd = f"is a {type(value).__name__}; quote it, or write a number, true, false, a list or a mapping"
    if depth > MAX_DEPTH:
        odd = f"nests more than {MAX_DEPTH} deep; no setting does"
    if odd:
        raise FreezeAsGuardError(f"{source}: {key or 'the file'} {odd}")


def shown(value: Any) -> str:
    """Of a wrong value as much as one line holds."""
    text = "a very large number" if isinstance(value, int) and abs(value) >= 2**63 else repr(value)
    return text if len(text) <= 70 else f"{text[:60]}... ({len(text)} characters)"


def validated(block: type[AnyBlock], values: dict[str, Any], source: Path) -> AnyBlock:
    """The block of `values`; every mistake is named by its key, with the value found and what it must be."""
    try:
        return block.model_validate(plain(values, source))
    except ValidationError as error:
        problems = list(dict.fromkeys(_told(problem, values) for problem in error.errors()))
        more = len(problems) - MAX_PROBLEMS
        said = "; ".join(problems[:MAX_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        raise FreezeAsGuardError(f"{source}: {said}") from None


KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "a text; quote it",
    "path": "a path; quote it",
    "list": "a list",
    "dict": "a block of keys",
    "model": "a block of keys",
}
"""What is wanted, by how pydantic's types of error begin."""
WORDS = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "choose from {expected}",
    "too_short": "needs at least {min_length} entries",
    "value_error": "{error}",
}


def _told(problem: Any, values: dict[str, Any]) -> str:
    """A problem of pydantic's in our words; its `loc` also names branches of a union, which no key of the file does."""
    kind, value, keys, at = problem["type"], problem.get("input"), [], values
    for part in problem["loc"]:
        known = part in at if isinstance(at, dict) else isinstance(at, list) and isinstance(part, int)
        if known:
            keys.append(str(part))
            at = at[part]
    if kind in ("missing", "extra_forbidden") and (not keys or keys[-1] != str(problem["loc"][-1])):
        keys.append(str(problem["loc"][-1]))
    key = ".".join(keys)
    if kind == "extra_forbidden":
        return f"{key} is not a key of this file; remove it or correct its spelling"
    if kind == "missing":
        return f"{key} is missing; see `freezeasguard profile tiny` for every key"
    wanted = KINDS.get(kind.split("_")[0])
    said = WORDS.get(kind, f"must be {wanted}" if wanted else "cannot be used here")
    said = said.format(**problem.get("ctx", {}))
    if problem["loc"] and problem["loc"][-1] == "[key]":
        return f"{key} is no key there: {said}"
    block = isinstance(value, dict) and kind == "value_error"  # it names what is wrong within
    return f"{key}: {said}".removeprefix(": ") if block else f"{key} is {shown(value)}: {said}"
