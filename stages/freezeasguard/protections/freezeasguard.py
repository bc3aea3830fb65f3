"""FreezeAsGuard: learn which units to freeze (paper, Algorithm 1; see `masks.bilevel`), and its two controls."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_atomically
from freezeasguard.masks.bilevel import LearnedMask, MaskLearner, learn_without_signal
from freezeasguard.masks.diagnostics import mask_diagnostics, overlap_of_units
from freezeasguard.models.diffusion import NoiseSchedule, load_scheduler, load_unet
from freezeasguard.models.protected import Protected, mask_sizes, tensor_shapes
from freezeasguard.protections.protect import Inputs
from freezeasguard.reading import read_tensors
from freezeasguard.settings.mask import Mask
from freezeasguard.sides import FINETUNED_SIDES, SIDES
from freezeasguard.workers import run_side_by_side


def load_finetuned(folder: Path) -> dict[tuple[str, ...], Mapping[str, torch.Tensor]]:
    """theta_ft by the sides its user trained on; only the tensors that moved."""
    found: dict[tuple[str, ...], Mapping[str, torch.Tensor]] = {
        sides: read_tensors(folder / f"{name}.safetensors", f"run `dvc repro -f relearn@{folder.name}`")
        for name, sides in FINETUNED_SIDES.items()
        if (folder / f"{name}.safetensors").is_file()
    }
    if not found:
        raise FreezeAsGuardError(f"{folder} holds no fine-tuned model; run `dvc repro relearn`")
    return found


CONTROLS = ("one_shot", "zeroed_signal")
"""Masks that the learned one must beat: one mask step's ranking, and its own run without a task signal."""


def learn(inputs: Inputs, mask: Mask, seed: int, control: str | None = None) -> LearnedMask:
    """The mask of one seed, on the mask-learning halves; or the one of a control."""
    generator, rho = torch.Generator().manual_seed(seed), inputs.settings.rho
    if control == "zeroed_signal":
        return learn_without_signal(tensor_shapes(inputs.tensors), mask, rho, generator)
    sides = {side: inputs.data.select(side, ["mask_learning"]) for side in SIDES}
    unet = load_unet(inputs.model).to(inputs.device)
    schedule, start = NoiseSchedule.of(load_scheduler(inputs.model)), load_finetuned(inputs.finetuned)
    learner = MaskLearner(unet, schedule, sides, start, mask, rho, generator)
    return learner.one_shot() if control == "one_shot" else learner.learn(f"learning the mask (seed {seed})")


def protect(inputs: Inputs) -> Protected:
    """Learn the mask, learn it again from other seeds, and say what it is made of.

    The arms of `CONTROLS` write their own mask instead, learned in part only.
    """
    settings, mask, rho = inputs.settings, inputs.settings.mask, inputs.settings.rho
    assert mask is not None
    control = inputs.arm.method if inputs.arm.method in CONTROLS else None
    seeds = [settings.seed + offset for offset in range(mask.diagnostic_seeds + 1)]
    with tempfile.TemporaryDirectory() as scratch:

        def task(seed: int) -> Any:
            def learn_and_save() -> None:
                learned = learn(inputs, mask, seed, control)
                with write_atomically(Path(scratch, f"{seed}.pt")) as temporary:  # a full disk is told in one line
                    torch.save(learned, temporary)

            return learn_and_save

        run_side_by_side({str(seed): task(seed) for seed in seeds}, inputs.workers, inputs.device)
        learned, *others = [torch.load(f"{scratch}/{seed}.pt", weights_only=False) for seed in seeds]
    shapes = tensor_shapes(inputs.tensors)
    told = {"rho": rho, "seed": settings.seed, **mask.model_dump(exclude={"of_profile", "diagnostic_seeds"})}
    protected = Protected(
        inputs.arm.method, settings=told, granularity=mask.granularity, frozen_units=learned.frozen_units(rho)
    )
    if control:
        agreement = [overlap_of_units(learned.top(rho), other.top(rho)) for other in others]
        diagnostics = {"overlap_expected_by_chance": rho, "overlap_across_seeds": agreement}
    else:
        silent = learn_without_signal(shapes, mask, rho, torch.Generator().manual_seed(settings.seed))
        diagnostics = mask_diagnostics(learned, rho, silent, others)
    return replace(protected, diagnostics={**mask_sizes(protected, shapes), **diagnostics})
