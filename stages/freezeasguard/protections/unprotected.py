"""Full fine-tuning: nothing frozen, nothing edited."""

from __future__ import annotations

from freezeasguard.models.protected import Protected
from freezeasguard.protections.protect import Inputs


def protect(inputs: Inputs) -> Protected:
    return Protected(inputs.arm.method, settings={"rho": 0.0})
