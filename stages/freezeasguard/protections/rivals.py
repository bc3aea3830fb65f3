"""The rival methods fill protected-model folders too: UCE and IMMA (METHOD, section 4)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from freezeasguard.models.diffusion import (
    NoiseSchedule,
    load_scheduler,
    load_text,
    load_unet,
    named_tensors,
    stored_tensors,
)
from freezeasguard.models.latents import CaseData
from freezeasguard.models.protected import Protected, write_for
from freezeasguard.protections.imma import IMMAConfig, immunise
from freezeasguard.protections.uce import UCEConfig, uce_edit
from freezeasguard.settings.params import IMMA, UCE, Case, Params
from freezeasguard.workers import resolve_device


def uce_protected(case: Case, config: UCE, reading: str, model: Path, data: CaseData) -> Protected:
    """UCE: the illegal classes' names, or the case's own concepts, are edited out of the cross-attention."""
    unet = load_unet(model)
    edit = UCEConfig(reading, config.erase_scale, config.ridge)
    subjects = data.index.loc[data.index["side"] == "illegal", "subject"]
    concepts = case.concepts or sorted(set(subjects))
    edited = uce_edit(unet, *load_text(model), concepts, case.guide, config.preserve, edit)
    tensors = named_tensors(unet)
    moved = {
        name: float((new - tensors[name]).detach().norm() / tensors[name].detach().norm())
        for name, new in edited.items()
    }
    settings = {**asdict(edit), "concepts": concepts, "guide": case.guide, "preserve": config.preserve}
    return Protected("uce", frozenset(), edited, settings, {"n_edited": len(edited), "relative_change": moved})


def imma_protected(config: IMMA, model: Path, data: CaseData, seed: int, device: str) -> Protected:
    """IMMA on the illegal side's mask-learning half."""
    alternation = IMMAConfig(**config.model_dump())
    unet = load_unet(model).to(device)
    schedule = NoiseSchedule.of(load_scheduler(model))
    generator = torch.Generator().manual_seed(seed)
    illegal = data.select("illegal", ["mask_learning"])
    edited, history = immunise(unet, schedule, illegal, alternation, generator=generator)
    diagnostics = {"n_edited": len(edited), **asdict(history)}
    return Protected("imma", frozenset(), edited, {**asdict(alternation), "seed": seed}, diagnostics)


def protect_by_uce(params: Params, case: str, arm: str, model: Path, data: CaseData, folder: Path) -> None:
    reading = "B" if arm == "uce-b" else "A"
    write_for(stored_tensors(model), folder, uce_protected(params.cases[case], params.uce, reading, model, data))


def protect_by_imma(params: Params, model: Path, data: CaseData, folder: Path) -> None:
    device = resolve_device(params.device)
    write_for(stored_tensors(model), folder, imma_protected(params.imma, model, data, params.seed, device))
