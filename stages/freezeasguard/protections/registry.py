"""The methods by name: what protects a model, what it reads, and how tables and figures call it.

Light on purpose: params.yaml, tables and figures read it without loading a network. A new method is one file - a
module with `protect(inputs: Inputs) -> Protected` - and one line here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from freezeasguard.errors import FreezeAsGuardError

PACKAGE = "freezeasguard.protections"


@dataclass(frozen=True)
class Method:
    label: str
    """As tables print it; {share} stands for how much the arm freezes, e.g. "30% of rows"."""
    module: str
    """Below `freezeasguard.protections`, or a dotted path of its own."""
    reads: Literal["model", "latents", "finetuned"] = "model"
    """What it looks at: the model alone; also the case's encoded images; also theta_ft."""
    block: str = ""
    """The block of params.yaml that it takes, if any."""
    preset: str = ""
    """The mask preset that it stands for, whatever the block `mask` names; "": that block's."""
    learned: bool = False
    """Its mask was learned from a task signal, and so comes with diagnostics."""
    ours: bool = False
    """Tested against UCE and IMMA too, image by image."""
    control: bool = False
    """A mask that the learned one must beat, for tables of masks; not one of the paper's arms."""
    gate: bool = False
    """It edits what the model knows: the model is also judged before any fine-tuning."""
    color: str = "#8c8c8c"
    """Okabe-Ito, told apart by the colour-blind."""
    paper: str = ""
    """The method of `paper_values.csv` that stands beside it."""

    @property
    def freezes(self) -> bool:
        """Whether the arm has a freeze ratio."""
        return "{share}" in self.label

    @property
    def import_path(self) -> str:
        return self.module if "." in self.module else f"{PACKAGE}.{self.module}"


METHODS: dict[str, Method] = {
    "full": Method("Full FT", "unprotected", color="#0072b2", paper="full"),
    "uce": Method("UCE", "uce", "latents", "uce", gate=True, color="#56b4e9", paper="uce"),
    "uce_b": Method("UCE, reading B", "uce", "latents", "uce", gate=True, color="#999933"),
    "imma": Method("IMMA", "imma", "latents", "imma", color="#cc79a7", paper="imma"),
    "uce_frozen": Method("UCE, frozen", "frozen_edits", "latents", "uce", gate=True, color="#332288"),
    "imma_frozen": Method("IMMA, frozen", "frozen_edits", "latents", "imma", gate=True, color="#882255"),
    "anchored": Method("Anchored", "anchored", "latents", "anchored", ours=True, gate=True, color="#44aa99"),
    "freezeasguard": Method(
        "FG-{share}",
        "freezeasguard",
        "finetuned",
        "mask",
        learned=True,
        ours=True,
        color="#d55e00",
        paper="freezeasguard",
    ),
    "freezeasguard_annealed": Method(
        "FG-{share}, annealed",
        "freezeasguard",
        "finetuned",
        "mask",
        "annealed",
        learned=True,
        ours=True,
        color="#aa4499",
    ),
    "freezeasguard_paper": Method(
        "FG-{share}, as printed",
        "freezeasguard",
        "finetuned",
        "mask",
        "paper",
        learned=True,
        ours=True,
        color="#661100",
    ),
    "freezeasguard_official": Method(
        "FG-{share}, authors' code",
        "freezeasguard",
        "finetuned",
        "mask",
        "official",
        learned=True,
        ours=True,
        color="#ddcc77",
    ),
    "random": Method("R-{share}", "random_freezing", color="#009e73", paper="random"),
    "random_parameters": Method("R-{share} of parameters", "random_freezing", control=True),
    "one_shot": Method("One shot, {share}", "freezeasguard", "finetuned", "mask", control=True),
    "one_shot_parameters": Method(
        "One shot, {share} of parameters", "freezeasguard", "finetuned", "mask", control=True
    ),
    "zeroed_signal": Method("Zeroed signal, {share}", "freezeasguard", "finetuned", "mask", control=True),
    "magnitude": Method("Magnitude first, {share}", "heuristics", control=True),
    "attention": Method("Attention first, {share}", "heuristics", control=True),
    "convolutions": Method("Convolutions first, {share}", "heuristics", control=True),
    "time_embedding": Method("Time embedding first, {share}", "heuristics", control=True),
    "freeze_attention": Method(
        "Attention projectors frozen", "components", color="#e69f00", paper="Attention projectors"
    ),
    "freeze_convolutions": Method("Conv. layers frozen", "components", color="#f0e442", paper="Conv. layers"),
    "freeze_matrices": Method("All but norms and biases frozen", "components", control=True),
    "freeze_outside_attention": Method(
        "All matrices outside attention frozen", "components", control=True, color="#bbbbbb"
    ),
    "freeze_time_embedding": Method("Time embeddings frozen", "components", color="#117733", paper="Time embeddings"),
}


def method_of(name: str) -> Method:
    if name not in METHODS:
        raise FreezeAsGuardError(f"there is no method {name!r}; choose from {', '.join(METHODS)}")
    return METHODS[name]
