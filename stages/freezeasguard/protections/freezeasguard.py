"""Each protection method fills a protected-model folder (see `masks.protected`)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.masks.bilevel import LearnedMask, MaskConfig, MaskLearner, learn_without_signal
from freezeasguard.masks.diagnostics import mask_diagnostics, overlap_of_units
from freezeasguard.models.diffusion import NoiseSchedule, load_scheduler, load_unet, stored_tensors
from freezeasguard.models.latents import CaseData
from freezeasguard.models.protected import Protected, mask_sizes, tensor_shapes, write_for
from freezeasguard.settings.params import Mask, Params
from freezeasguard.sides import FINETUNED_SIDES, SIDES
from freezeasguard.workers import resolve_device, run_side_by_side


def load_finetuned(folder: Path) -> dict[tuple[str, ...], Mapping[str, torch.Tensor]]:
    """theta_ft by the sides its user trained on; only the tensors that moved."""
    found: dict[tuple[str, ...], Mapping[str, torch.Tensor]] = {
        sides: load_file(folder / f"{name}.safetensors")
        for name, sides in FINETUNED_SIDES.items()
        if (folder / f"{name}.safetensors").is_file()
    }
    if not found:
        raise FreezeAsGuardError(f"{folder} holds no fine-tuned model; run `dvc repro relearn`")
    return found


CONTROLS = ("one_shot", "zeroed_signal")
"""Masks that the learned one must beat: one mask step's ranking, and its own run without a task signal."""


def _learn(
    config: MaskConfig,
    model: Path,
    data: CaseData,
    finetuned: Path,
    rho: float,
    seed: int,
    device: str,
    control: str | None,
) -> LearnedMask:
    generator = torch.Generator().manual_seed(seed)
    if control == "zeroed_signal":
        return learn_without_signal(tensor_shapes(stored_tensors(model)), config, rho, generator)
    sides = {side: data.select(side, ["mask_learning"]) for side in SIDES}
    unet, schedule = load_unet(model).to(device), NoiseSchedule.of(load_scheduler(model))
    learner = MaskLearner(unet, schedule, sides, load_finetuned(finetuned), config, rho, generator)
    return learner.one_shot() if control == "one_shot" else learner.learn(f"learning the mask (seed {seed})")


def protect_by_mask(
    params: Params,
    mask: Mask,
    model: Path,
    data: CaseData,
    finetuned: Path,
    folder: Path,
    rho: float,
    control: str | None = None,
) -> LearnedMask:
    """FreezeAsGuard: learn the mask, learn it again from other seeds, and say what it is made of.

    Args:
        control: none, or the one of `CONTROLS` whose mask is written instead.
    """
    if control not in (None, *CONTROLS):
        raise FreezeAsGuardError(f"the control is {control!r}; use {' or '.join(CONTROLS)}")
    config = MaskConfig(**mask.settings())
    device = resolve_device(params.device)
    seeds = [params.seed + offset for offset in range(mask.diagnostic_seeds + 1)]
    with tempfile.TemporaryDirectory() as scratch:

        def task(seed: int) -> Any:
            def learn() -> None:
                learned = _learn(config, model, data, finetuned, rho, seed, device, control)
                torch.save(learned, f"{scratch}/{seed}.pt")

            return learn

        run_side_by_side({str(seed): task(seed) for seed in seeds}, params.workers, device)
        learned, *others = [torch.load(f"{scratch}/{seed}.pt", weights_only=False) for seed in seeds]
    tensors = stored_tensors(model)
    shapes = tensor_shapes(tensors)
    settings = {"rho": rho, "seed": params.seed, "preset": mask.preset, **mask.settings()}
    protected = Protected(
        control or "freezeasguard",
        settings=settings,
        granularity=config.granularity,
        frozen_units=learned.frozen_units(rho),
    )
    if control:
        agreement = [overlap_of_units(learned.top(rho), other.top(rho)) for other in others]
        diagnostics = {"overlap_expected_by_chance": rho, "overlap_across_seeds": agreement}
    else:
        silent = learn_without_signal(shapes, config, rho, torch.Generator().manual_seed(params.seed))
        diagnostics = mask_diagnostics(learned, rho, silent, others)
    write_for(tensors, folder, replace(protected, diagnostics={**mask_sizes(protected, shapes), **diagnostics}))
    return learned
