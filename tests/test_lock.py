"""requirements.lock: every package that this one and its extras name, at a version that fits, by hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(found["name"]): (found["version"], re.findall(r"--hash=sha256:([0-9a-f]{64})\b", found[0]))
    for found in re.finditer(
        r"^(?P<name>[\w.-]+)==(?P<version>\S+)(?: \\\n    \S+)+", (ROOT / "requirements.lock").read_text(), re.MULTILINE
    )
}


def test_every_pin_has_a_hash() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if re.match(r"\w", line)]
    assert len(lines) == len(PINS) > 200 and all(hashes for _, hashes in PINS.values())


@pytest.mark.parametrize("extra", ["", "nudenet", "dlib", "test", "dev"])  # paper: an environment of its own
def test_every_dependency_is_pinned_at_a_version_that_fits(extra: str) -> None:
    named = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    for requirement in map(Requirement, named):
        if requirement.name in ("torch", "freezeasguard"):  # installed first, by its own pin; this package
            continue
        version, _ = PINS[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, requirement


def test_what_is_under_another_licence_is_an_extra() -> None:
    assert not any(Requirement(line).name == "nudenet" for line in PROJECT["dependencies"])
    assert PROJECT["optional-dependencies"]["nudenet"] == ["nudenet>=3.4.2"]
