"""Each protection method fills a protected-model folder (see `masks.protected`)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from freezeasguard.baselines.heuristics import RULES, heuristic_frozen
from freezeasguard.baselines.random_freezing import random_frozen_by_parameters, random_frozen_units
from freezeasguard.bilevel import LearnedMask, MaskConfig, MaskLearner, learn_without_signal
from freezeasguard.config import Mask, Params, arm_granularity
from freezeasguard.data.latents import FINETUNED_SIDES, SIDES, CaseData
from freezeasguard.diagnostics import mask_diagnostics, overlap_of_units
from freezeasguard.diffusion import NoiseSchedule, load_scheduler, load_unet, model_hash, named_tensors
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.masks.protected import Protected, mask_sizes, write_protected
from freezeasguard.workers import resolve_device, run_side_by_side


def write_for(unet: torch.nn.Module, folder: Path, protected: Protected) -> None:
    """Write the folder for this UNet: its shapes, its hash."""
    write_protected(folder, protected, tensor_shapes(unet), model_hash(named_tensors(unet)))


def tensor_shapes(unet: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in named_tensors(unet).items()}


def protect_nothing(unet: torch.nn.Module, folder: Path, method: str) -> None:
    """Full fine-tuning: nothing frozen, nothing edited."""
    write_for(unet, folder, Protected(method, settings={"rho": 0.0}))


def protect_randomly(
    unet: torch.nn.Module,
    folder: Path,
    rho: float,
    seed: int,
    granularity: str = "tensor",
    *,
    by_parameters: bool = False,
) -> None:
    """Freeze drawn tensors, rows or weights.

    rho is the share of the network's units; `by_parameters` freezes whole tensors up to that share of its single
    weights (see `random_frozen_by_parameters`), the control of a mask that happens to freeze large tensors.
    """
    shapes = tensor_shapes(unet)
    generator = torch.Generator().manual_seed(seed)
    settings: dict[str, Any] = {"rho": rho, "seed": seed}
    if by_parameters:
        if granularity != "tensor":
            raise FreezeAsGuardError(f"random freezing by parameters draws tensors, not granularity {granularity!r}")
        frozen = random_frozen_by_parameters(shapes, rho, generator)
        drawn = Protected("random", frozen, settings={**settings, "by": "parameters"})
    else:
        units = random_frozen_units(shapes, rho, granularity, generator)
        drawn = Protected("random", settings=settings, granularity=granularity, frozen_units=units)
    write_for(unet, folder, replace(drawn, diagnostics=mask_sizes(drawn, shapes)))


def protect_blindly(unet: torch.nn.Module, arm: str, folder: Path, rho: float, seed: int) -> None:
    """An arm whose mask knows nothing of the data: random of some kind, or by a rule of thumb."""
    if arm in RULES:
        frozen = heuristic_frozen(arm, named_tensors(unet), rho, torch.Generator().manual_seed(seed))
        by_rule = Protected(arm, frozen, settings={"rho": rho, "seed": seed})
        write_for(unet, folder, replace(by_rule, diagnostics=mask_sizes(by_rule, tensor_shapes(unet))))
        return
    by_parameters = arm == "random-parameters"
    protect_randomly(unet, folder, rho, seed, arm_granularity(arm), by_parameters=by_parameters)


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
    unet = load_unet(model)
    if control == "zeroed_signal":
        return learn_without_signal(tensor_shapes(unet), config, rho, generator)
    sides = {side: data.select(side, ["mask_learning"]) for side in SIDES}
    schedule = NoiseSchedule.of(load_scheduler(model))
    learner = MaskLearner(unet.to(device), schedule, sides, load_finetuned(finetuned), config, rho, generator)
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
    unet = load_unet(model)
    shapes = tensor_shapes(unet)
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
    write_for(unet, folder, replace(protected, diagnostics={**mask_sizes(protected, shapes), **diagnostics}))
    return learned
