"""A domain made of several sources, such as explicit images of one data set against the logos of another."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from freezeasguard.data.sources.base import Item
from freezeasguard.data.sources.registry import SOURCES
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.settings.params import Domain, Origin


def class_names(domain: Domain) -> list[str] | None:
    """Those of all parts; None if a part's are not known before its images are here."""
    names: list[str] = []
    for name, part in domain.parts.items():
        found = getattr(_module(part), "class_names", lambda _: None)(_as_domain(domain, part))
        if found is None:
            return None
        for told in found:
            _refuse_twice(told, told in names, name)
        names += found
    return names


def items(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """Each part's images, as its own source yields them; no class comes from two parts."""
    part_of: dict[str, str] = {}
    for name, part in domain.parts.items():
        for item in _module(part).items(_as_domain(domain, part), downloads / name, seed):
            _refuse_twice(item.class_name, part_of.setdefault(item.class_name, name) != name, name)
            yield item


def _module(part: Origin) -> Any:
    return import_module(SOURCES[part.source].import_path)


def _as_domain(domain: Domain, part: Origin) -> Domain:
    """What the part's source takes: the domain's own numbers, and the part's description of its images."""
    return domain.model_copy(update={"parts": {}, **{key: getattr(part, key) for key in Origin.model_fields}})


def _refuse_twice(class_name: str, twice: bool, part: str) -> None:
    if twice:
        raise FreezeAsGuardError(
            f"class {class_name!r} of the part {part!r} is also another part's; give one of them another class_name"
        )
