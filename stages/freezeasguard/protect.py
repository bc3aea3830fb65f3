"""Each protection method fills a protected-model folder (see `protected`)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from freezeasguard.baselines.random_freezing import random_frozen
from freezeasguard.bilevel import LearnedMask, MaskConfig, MaskLearner, learn_without_signal
from freezeasguard.config import Mask, Params
from freezeasguard.data.latents import FINETUNED_SIDES, SIDES, CaseData
from freezeasguard.diagnostics import frozen_share_of_parameters, mask_diagnostics
from freezeasguard.diffusion import NoiseSchedule, load_scheduler, load_unet, model_hash, named_tensors
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.protected import Protected, write_protected
from freezeasguard.workers import resolve_device, run_side_by_side


def write_for(unet: torch.nn.Module, folder: Path, protected: Protected) -> None:
    """Write the folder for this UNet: its shapes, its hash."""
    tensors = named_tensors(unet)
    write_protected(folder, protected, {n: list(t.shape) for n, t in tensors.items()}, model_hash(tensors))


def protect_nothing(unet: torch.nn.Module, folder: Path, method: str) -> None:
    """Full fine-tuning: nothing frozen, nothing edited."""
    write_for(unet, folder, Protected(method, settings={"rho": 0.0}))


def protect_randomly(unet: torch.nn.Module, folder: Path, rho: float, seed: int) -> None:
    tensors = named_tensors(unet)
    frozen = random_frozen(sorted(tensors), rho, torch.Generator().manual_seed(seed))
    sizes = {name: tensor.numel() for name, tensor in tensors.items()}
    diagnostics = {"share_of_parameters_frozen": frozen_share_of_parameters(frozen, sizes), "n_frozen": len(frozen)}
    write_for(unet, folder, Protected("random", frozen, {}, {"rho": rho, "seed": seed}, diagnostics))


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


def _learn(config: MaskConfig, model: Path, data: CaseData, finetuned: Path, rho: float, seed: int, device: str) -> Any:
    unet = load_unet(model).to(device)
    sides = {side: data.select(side, ["mask_learning"]) for side in SIDES}
    schedule = NoiseSchedule.of(load_scheduler(model))
    generator = torch.Generator().manual_seed(seed)
    start = load_finetuned(finetuned)
    learner = MaskLearner(unet, schedule, sides, start, config, rho, generator)
    return learner.learn(f"learning the mask (seed {seed})")


def protect_by_mask(
    params: Params, mask: Mask, model: Path, data: CaseData, finetuned: Path, folder: Path, rho: float
) -> LearnedMask:
    """FreezeAsGuard: learn the mask, learn it again from other seeds, and say what it is made of."""
    config = MaskConfig(**mask.settings())
    device = resolve_device(params.device)
    seeds = [params.seed + offset for offset in range(mask.diagnostic_seeds + 1)]
    with tempfile.TemporaryDirectory() as scratch:

        def task(seed: int) -> Any:
            def learn() -> None:
                learned = _learn(config, model, data, finetuned, rho, seed, device)
                torch.save(learned, f"{scratch}/{seed}.pt")

            return learn

        run_side_by_side({str(seed): task(seed) for seed in seeds}, params.workers, device)
        learned, *others = [torch.load(f"{scratch}/{seed}.pt", weights_only=False) for seed in seeds]
    unet = load_unet(model)
    sizes = {name: tensor.numel() for name, tensor in named_tensors(unet).items()}
    silent = learn_without_signal(learned.names, config, rho, torch.Generator().manual_seed(params.seed))
    diagnostics = mask_diagnostics(learned, rho, silent, others, sizes)
    settings = {"rho": rho, "seed": params.seed, "preset": mask.preset, **mask.settings()}
    write_for(unet, folder, Protected("freezeasguard", learned.frozen(rho), {}, settings, diagnostics))
    return learned
