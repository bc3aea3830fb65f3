"""The rival methods fill protected-model folders too: UCE and IMMA (METHOD, section 4)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from freezeasguard.baselines.imma import IMMAConfig, immunise
from freezeasguard.baselines.uce import UCEConfig, uce_edit
from freezeasguard.config import Params
from freezeasguard.data.latents import CaseData
from freezeasguard.diffusion import NoiseSchedule, load_scheduler, load_text, load_unet, named_tensors
from freezeasguard.protect import write_for
from freezeasguard.protected import Protected
from freezeasguard.workers import resolve_device


def protect_by_uce(params: Params, case: str, arm: str, model: Path, data: CaseData, folder: Path) -> None:
    """UCE: the illegal classes' names, or the case's own concepts, are edited out of the cross-attention."""
    unet = load_unet(model)
    config = UCEConfig("B" if arm == "uce-b" else "A", params.uce.erase_scale, params.uce.ridge)
    block = params.cases[case]
    subjects = data.index.loc[data.index["side"] == "illegal", "subject"]
    concepts = block.concepts or sorted(set(subjects))
    edited = uce_edit(unet, *load_text(model), concepts, block.guide, params.uce.preserve, config)
    tensors = named_tensors(unet)
    moved = {
        name: float((new - tensors[name]).detach().norm() / tensors[name].detach().norm())
        for name, new in edited.items()
    }
    settings = {**asdict(config), "concepts": concepts, "guide": block.guide, "preserve": params.uce.preserve}
    diagnostics = {"n_edited": len(edited), "relative_change": moved}
    write_for(unet, folder, Protected("uce", frozenset(), edited, settings, diagnostics))


def protect_by_imma(params: Params, model: Path, data: CaseData, folder: Path) -> None:
    """IMMA on the illegal side's mask-learning half."""
    config = IMMAConfig(**params.imma.model_dump())
    unet = load_unet(model).to(resolve_device(params.device))
    schedule = NoiseSchedule.of(load_scheduler(model))
    generator = torch.Generator().manual_seed(params.seed)
    illegal = data.select("illegal", ["mask_learning"])
    edited, history = immunise(unet, schedule, illegal, config, generator=generator)
    settings = {**asdict(config), "seed": params.seed}
    diagnostics = {"n_edited": len(edited), **asdict(history)}
    write_for(load_unet(model), folder, Protected("imma", frozenset(), edited, settings, diagnostics))
