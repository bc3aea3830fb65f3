"""Measure the gates, all of them or group by group: "knowledge" alone takes minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.miniature.gates import Gate
from freezeasguard.miniature.gates_domains import explicit_gates, illustrator_gates, orl_gates
from freezeasguard.miniature.gates_figures import figure_gates, knowledge_gates, prompt_gates

GROUPS: dict[str, Callable[[Path, Path], list[Gate]]] = {
    "figures": figure_gates,
    "prompts": prompt_gates,
    "knowledge": knowledge_gates,
    "illustrators": illustrator_gates,
    "explicit": explicit_gates,
    "orl": orl_gates,
}
OF_UNET = ("prompts", "knowledge")
"""What the models of the family differ in; the autoencoder and the scorers are one."""


def measure_gates(model: Path, scorers: Path, only: Sequence[str] = ()) -> list[Gate]:
    """The gates of the model in `model` and the scorers in `scorers`; of some groups, where `only` names them."""
    if unknown := sorted(set(only) - GROUPS.keys()):
        raise FreezeAsGuardError(f"there is no group of gates {unknown[0]!r}; choose from {', '.join(GROUPS)}")
    chosen = [measure for group, measure in GROUPS.items() if not only or group in only]
    return [gate for measure in chosen for gate in measure(model, scorers)]
