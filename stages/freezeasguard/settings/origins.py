"""Where each resolved setting came from: the profile, an edit of params.yaml, a mask preset, or a field's default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from freezeasguard.settings.mask import layered
from freezeasguard.settings.params import PARAMS, Params, parse_params
from freezeasguard.settings.profiles import profile_names, profile_text
from freezeasguard.settings.reading import parse_yaml, read_yaml

OF_THE_CASE = "the case's adapt.lr"
FOLLOWS = {
    "mask.user_lr": OF_THE_CASE,
    "imma.steps": "the case's adapt.steps",
    "imma.inner_lr": OF_THE_CASE,
    "imma.outer_lr": "4 x imma.inner_lr",
    "methods.anchored.user_lr": OF_THE_CASE,
}
"""What stands in for what is null."""


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; lists are values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def origins(path: Path = PARAMS) -> list[tuple[str, Any, str]]:
    """(key, resolved value, where it came from) of every setting, in the order of the blocks."""
    written = read_yaml(path)
    params: Params = parse_params(written, path)
    known = params.profile in profile_names()
    own = dict(leaves(written))
    of_profile = dict(leaves(parse_yaml(profile_text(params.profile), path))) if known else {}
    mask_origins = layered(written.get("mask") or {})[1]

    def origin(key: str) -> str:
        block, _, rest = key.partition(".")
        if block == "mask" and not rest.startswith("of_profile"):
            found = mask_origins.get(rest, "default")
            if found != "params.yaml":
                return found
        elif key not in own:
            return "default"
        if key in of_profile and of_profile[key] == own.get(key):
            return f"profile {params.profile}"
        return f"params.yaml (profile {params.profile}: {of_profile[key]})" if key in of_profile else "params.yaml"

    resolved = params.model_dump(mode="json", exclude={"mask": {"of_profile"}})
    rows = [(key, value, origin(key)) for key, value in leaves(resolved)]
    return [(key, FOLLOWS.get(key, value) if value is None else value, told) for key, value, told in rows]
