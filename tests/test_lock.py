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


def pins(name: str) -> dict[str, tuple[str, list[str]]]:
    """Package -> version and hashes."""
    pattern = r"^(?P<name>[\w.-]+)==(?P<version>\S+)(?: \\\n    \S+)+"
    return {
        canonicalize_name(found["name"]): (found["version"], re.findall(r"--hash=sha256:([0-9a-f]{64})\b", found[0]))
        for found in re.finditer(pattern, (ROOT / name).read_text(), re.MULTILINE)
    }


PINS, PAPER = pins("requirements.lock"), pins("requirements-paper.lock")


def test_every_pin_has_a_hash() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if re.match(r"\w", line)]
    assert len(lines) == len(PINS) > 200 and all(hashes for _, hashes in PINS.values())


@pytest.mark.parametrize("extra", ["", "nudenet", "dlib", "test", "dev", "paper"])
def test_every_dependency_is_pinned_at_a_version_that_fits(extra: str) -> None:
    named = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    for requirement in map(Requirement, named):
        if requirement.name in ("torch", "torchvision", "freezeasguard"):  # first, by their own pins; this package
            continue
        version, _ = (PINS | PAPER if extra == "paper" else PINS)[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, requirement


def test_what_is_under_another_licence_is_an_extra() -> None:
    assert not any(Requirement(line).name == "nudenet" for line in PROJECT["dependencies"])
    assert PROJECT["optional-dependencies"]["nudenet"] == ["nudenet>=3.4.2"]


def test_the_extra_paper_adds_to_the_lock_and_brings_no_opencv_without_cascades() -> None:
    assert not PINS.keys() & PAPER.keys() and all(hashes for _, hashes in PAPER.values())
    of_opencv = {version for name, (version, _) in (PINS | PAPER).items() if name.startswith("opencv")}
    assert of_opencv == {"4.14.0.94"}
