"""The attackers by name: what a user does with a protected model.

A new attacker is one file - a module with `attack(unet, protected, schedule, data, settings, device, **how)` that ends
in `training.finetune`, THE loop - and one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from freezeasguard.errors import FreezeAsGuardError

COMPLIANT = "compliant"
ATTACKERS = {
    COMPLIANT: "freezeasguard.users.compliant",
    "unfreeze": "freezeasguard.users.unfreeze",
}


def attacker(name: str) -> Callable[..., list[float]]:
    """The `attack` of the attacker's module."""
    if name not in ATTACKERS:
        raise FreezeAsGuardError(f"adapt.attacker is {name!r}; choose from {', '.join(ATTACKERS)}")
    return import_module(ATTACKERS[name]).attack
