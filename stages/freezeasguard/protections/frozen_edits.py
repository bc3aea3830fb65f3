"""Freeze what an edit changed: UCE's and IMMA's edits are undone because their tensors are free to be trained back."""

from __future__ import annotations

from dataclasses import replace

from freezeasguard.models.protected import Protected
from freezeasguard.protections import imma
from freezeasguard.protections.protect import Inputs
from freezeasguard.protections.uce import erase


def protect(inputs: Inputs) -> Protected:
    """The arm's own edit, byte for byte, with the edited tensors frozen at their edited values."""
    found = erase(inputs, "A") if inputs.arm.method == "uce_frozen" else imma.protect(inputs)
    return replace(found, method=inputs.arm.method, frozen=frozenset(found.edited))
