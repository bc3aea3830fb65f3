"""FreezeAsGuard: learn which units to freeze (paper, Algorithm 1; see `masks.bilevel`), and its two controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from freezeasguard.checkpoints import Checkpoint
from freezeasguard.masks.bilevel import LearnedMask, MaskHistory, MaskLearner, learn_without_signal
from freezeasguard.masks.diagnostics import mask_diagnostics, overlap_of_units
from freezeasguard.models.diffusion import NoiseSchedule, load_scheduler, load_unet, model_hash
from freezeasguard.models.protected import Protected, load_tensors, mask_sizes, tensor_shapes
from freezeasguard.protections.protect import Inputs
from freezeasguard.protections.uce import erase
from freezeasguard.reading import read_tensors
from freezeasguard.seeds import seed_of
from freezeasguard.settings.mask import Mask
from freezeasguard.sides import FINETUNED_SIDES, SIDES, USERS
from freezeasguard.workers import run_side_by_side


def load_finetuned(folder: Path, users: str) -> dict[tuple[str, ...], Mapping[str, torch.Tensor]]:
    """theta_ft by the sides its user trained on, of those whom the mask simulates; only the tensors that moved."""
    remedy = f"run `dvc repro -f relearn@{folder.name}`"
    return {FINETUNED_SIDES[name]: read_tensors(folder / f"{name}.safetensors", remedy) for name in USERS[users]}


CONTROLS = ("one_shot", "one_shot_parameters", "zeroed_signal")
"""Masks that the learned one must beat: one mask step's ranking, of tensors or within a budget of single weights, and
its own run without a task signal."""

UNTOLD = frozenset({"of_profile", "diagnostic_seeds", "checkpoint_minutes"})
"""Settings that a protected model does not name, as its mask does not depend on them."""

Runs = Mapping[int, Checkpoint]


def learn(
    inputs: Inputs,
    mask: Mask,
    seed: int,
    control: str | None = None,
    checkpoint: Checkpoint | None = None,
    edited: Mapping[str, torch.Tensor] | None = None,
) -> LearnedMask:
    """The mask of one seed, on the mask-learning halves; or the one of a control.

    Args:
        edited: tensors of theta_pre that are not the published ones (METHOD, reading 9).
    """
    generator, rho = torch.Generator().manual_seed(seed_of(seed, "mask")), inputs.settings.rho
    if control == "zeroed_signal":
        return learn_without_signal(tensor_shapes(inputs.tensors), mask, rho, generator, inputs.device)
    sides = {side: inputs.data.select(side, ["mask_learning"]) for side in SIDES}
    unet = load_unet(inputs.model)
    load_tensors(unet, edited or {})
    unet.to(inputs.device)
    schedule, start = NoiseSchedule.of(load_scheduler(inputs.model)), load_finetuned(inputs.finetuned, mask.users)
    learner = MaskLearner(unet, schedule, sides, start, mask, rho, generator, inputs.settings.compute)
    if control:
        return learner.one_shot()
    return learner.learn(f"learning the mask (seed {seed})", checkpoint, inputs.meter)


def learn_all(
    inputs: Inputs,
    mask: Mask,
    control: str | None,
    edited: Mapping[str, torch.Tensor],
    running: Runs,
    ready: Runs,
) -> list[LearnedMask]:
    """The masks of all seeds, the first of which is the arm's own, side by side.

    Those that an earlier process finished before it was killed are read back.

    Args:
        running, ready: by seed, where its run leaves its state, and its mask once it is whole.
    """

    def task(seed: int) -> Any:
        def learn_and_save() -> None:
            learned = learn(inputs, mask, seed, control, running[seed], edited)
            parts = {"logits": learned.logits, "initial_logits": learned.initial_logits}
            costs = {key: value for key, value in vars(inputs.meter).items() if key != "device"}
            ready[seed].save({**parts, "history": vars(learned.history), "costs": costs})
            running[seed].clear()

        return learn_and_save

    missing = {str(seed): task(seed) for seed, checkpoint in ready.items() if checkpoint.load() is None}
    if missing:
        run_side_by_side(missing, inputs.workers, inputs.device)
    found = [checkpoint.load() or {} for checkpoint in ready.values()]
    vars(inputs.meter).update(found[0]["costs"])  # those of a process of its own, and of one mask alone
    shapes = {name: tuple(shape) for name, shape in tensor_shapes(inputs.tensors).items()}
    return [
        LearnedMask(shapes, mask.granularity, s["logits"], s["initial_logits"], MaskHistory(**s["history"]))
        for s in found
    ]


def protect(inputs: Inputs) -> Protected:
    """Learn the mask, learn it again from other seeds, and say what it is made of.

    The arms of `CONTROLS` write their own mask instead, learned in part only.
    """
    settings, mask, rho = inputs.settings, inputs.settings.mask, inputs.settings.rho
    assert mask is not None
    control = inputs.arm.method if inputs.arm.method in CONTROLS else None
    if control == "one_shot_parameters":
        inputs.whole_tensors()
    seeds = [settings.seed + offset for offset in range(mask.diagnostic_seeds + 1)]
    edited = erase(inputs, "A").edited if mask.start == "uce" else {}
    running, ready = {}, {}
    if control == "zeroed_signal":  # trains nothing
        masks = [learn(inputs, mask, seed, control) for seed in seeds]
    else:
        finetuned = load_finetuned(inputs.finetuned, mask.users)
        start = {"+".join(sides): model_hash(tensors) for sides, tensors in finetuned.items()}
        running, ready = (
            {seed: inputs.checkpoint(f"{seed}-{what}", start=start) for seed in seeds} for what in ("running", "ready")
        )
        masks = learn_all(inputs, mask, control, edited, running, ready)
    learned, *others = masks
    shapes = tensor_shapes(inputs.tensors)
    told = {"rho": rho, "seed": settings.seed, **mask.model_dump(exclude=UNTOLD)}
    if control == "one_shot_parameters":
        told["by"] = "parameters"

    def units_of(one: LearnedMask) -> dict[str, torch.Tensor]:
        if control != "one_shot_parameters":
            return one.frozen_units(rho)
        frozen = one.frozen_by_parameters(rho)
        return {name: torch.tensor([name in frozen]) for name in one.names}

    units = units_of(learned)
    protected = Protected(
        inputs.arm.method, edited=edited, settings=told, granularity=mask.granularity, frozen_units=units
    )
    if control:
        flat = [torch.cat(list(found.values())) for found in (units, *map(units_of, others))]
        agreement = [overlap_of_units(flat[0], other) for other in flat[1:]]
        diagnostics = {"overlap_expected_by_chance": rho, "overlap_across_seeds": agreement}
    else:
        generator = torch.Generator().manual_seed(seed_of(settings.seed, "mask"))
        silent = learn_without_signal(shapes, mask, rho, generator, inputs.device)
        diagnostics = mask_diagnostics(learned, rho, silent, others)
    for checkpoint in (*running.values(), *ready.values()):
        checkpoint.clear()
    return replace(protected, diagnostics={**mask_sizes(protected, shapes), **diagnostics})
