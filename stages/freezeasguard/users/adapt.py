"""The users after protection: each side's fine-tunes the model of one arm, on its adaptation half."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file

from freezeasguard.checkpoints import CHECKPOINTS, Checkpoint, Pieces, digest
from freezeasguard.costs import Meter
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import folder_atomically, link_or_copy, write_atomically, write_json
from freezeasguard.models.batches import finite_loss, fixed_noise_loss, fixed_noise_losses
from freezeasguard.models.computing import configure
from freezeasguard.models.diffusion import NoiseSchedule, load_scheduler, load_unet, model_hash, stored_tensors
from freezeasguard.models.granularity import mask_digest
from freezeasguard.models.latents import CaseData, LatentSet
from freezeasguard.models.protected import Protected, read_protected
from freezeasguard.reading import read_json
from freezeasguard.seeds import seed_of
from freezeasguard.settings.compute import PLAIN, Compute
from freezeasguard.settings.resolve import AdaptSettings
from freezeasguard.settings.users import Finetuning
from freezeasguard.sides import SIDES, user_name
from freezeasguard.users.registry import COMPLIANT, attacker
from freezeasguard.users.training import changed_tensors
from freezeasguard.workers import run_side_by_side

COSTS = "costs.json"
"""Of a user who waits for the others of the cell."""


def run_identity(
    settings: Finetuning,
    *,
    seed: int,
    tensors: str,
    schedule: NoiseSchedule,
    protected: Protected,
    data: LatentSet,
    held_out: LatentSet | None = None,
    device: str,
    compute: Compute = PLAIN,
    code: str = "",
) -> dict[str, Any]:
    """All that a user's run depends on: a checkpoint is taken up again where every entry agrees, and nowhere else.

    Args:
        tensors: the hash of the published UNet (see `model_hash`); device: of it the type alone counts.
    """
    return {
        "settings": settings.model_dump(exclude={"checkpoint_steps", "checkpoint_minutes"}),
        "compute": compute.model_dump(),
        "code": code,
        "seed": seed,
        "model": tensors,
        "schedule": [schedule.prediction_type, digest(schedule.alphas_cumprod)],
        "edited": model_hash(protected.edited),
        "mask": mask_digest(protected.frozen, protected.frozen_units, protected.granularity),
        "data": [digest(tensor) for part in (data, held_out) if part for tensor in (part.latents, part.text)],
        "device": device.partition(":")[0],
        "torch": str(torch.__version__),  # a plain string: a checkpoint holds no other classes, or is not read back
    }


def adapt_and_save(
    name: str,
    model: Path,
    protected_folder: Path | None,
    data: LatentSet,
    settings: Finetuning,
    out: Path,
    *,
    seed: int,
    device: str,
    checkpoint_name: str,
    held_out: LatentSet | None = None,
    compute: Compute = PLAIN,
    code: str = "",
    wait: bool = False,
) -> None:
    """Fine-tune the model as protected and write `name`.safetensors (changed tensors) and `name`.json.

    Args:
        held_out: images that it is not trained on; the loss on them is told too.
        wait: `out` is where users who have finished wait for the others of their cell: one who did the very same run
            is left alone, and what the run cost is written beside it.
    """
    configure(compute, device)
    published = stored_tensors(model)
    unet = load_unet(model)
    protected = read_protected(protected_folder, unet) if protected_folder else Protected("full")
    schedule = NoiseSchedule.of(load_scheduler(model))
    identity = run_identity(
        settings,
        seed=seed,
        tensors=model_hash(published),
        schedule=schedule,
        protected=protected,
        data=data,
        held_out=held_out,
        device=device,
        compute=compute,
        code=code,
    )
    pieces = Pieces(out, identity) if wait else None
    if pieces and (out / COSTS).is_file():  # the last file that a user writes
        return
    checkpoint = Checkpoint(CHECKPOINTS / f"{checkpoint_name}.pt", identity)
    meter, description = Meter(device), f"fine-tuning {checkpoint_name}"
    how = {"checkpoint": checkpoint, "compute": compute, "meter": meter, "description": description}
    attack = attacker(getattr(settings, "attacker", COMPLIANT))
    generator = torch.Generator().manual_seed(seed)
    losses = attack(unet, protected, schedule, data, settings, device, generator=generator, **how)
    costs = meter.record()
    # Seeded apart from training, and alike for every arm.
    at_end = fixed_noise_losses(unet, schedule, data, torch.Generator().manual_seed(seed + 1))
    fixed = finite_loss(float(at_end.mean()), description, "the end", "lower its lr (adapt.lr or relearn.lr)")
    unseen = held_out and fixed_noise_loss(unet, schedule, held_out, torch.Generator().manual_seed(seed + 1))
    # Changes are told from the weights as published: an edited tensor counts as changed.
    changed = changed_tensors(unet.to("cpu"), published)
    stored = getattr(torch, getattr(settings, "store", "float32"))
    with write_atomically(out / f"{name}.safetensors") as temporary:
        save_file({key: tensor.to(stored) for key, tensor in changed.items()}, temporary)
    quarters = [float(part.mean()) for part in at_end.chunk(4)]  # of the timesteps, from the least noisy
    record = {"losses": losses, "fixed_noise_loss": fixed, "fixed_noise_quarters": quarters, "held_out_loss": unseen}
    write_json(out / f"{name}.json", {**record, "n_changed": len(changed), "n_images": len(data)})
    if pieces:
        write_json(out / COSTS, costs)
    checkpoint.clear()


def adapt_cell(
    settings: AdaptSettings,
    model: Path,
    protected: Path,
    data: CaseData,
    out: Path,
    label: str,
    device: str,
    workers: int,
    costs: Path | None = None,
) -> None:
    """The illegal and the legal user of a cell, or those of every class, each on its own adaptation half."""
    config, half = settings.finetuning, ["adaptation"]
    sets: dict[str, LatentSet] = {}
    held_out: dict[str, LatentSet] = {}
    for side in SIDES:
        unseen = data.rows(side, ["held_out"])
        for name in data.classes(side, half) if config.per_class else [None]:
            user = user_name(side, name)
            if user in sets:
                raise FreezeAsGuardError(f"two classes of the {side} side would be one user, {user}; rename one")
            sets[user] = data.select(side, half, name)
            if len(unseen if name is None else unseen[unseen["class"] == name]):
                held_out[user] = data.select(side, ["held_out"], name)
    train_users(
        config,
        (settings.seed, "adapt"),
        model,
        protected,
        sets,
        out,
        label,
        device,
        workers,
        costs,
        settings.compute,
        settings.code,
        held_out,
    )


def train_users(
    settings: Finetuning,
    seed: tuple[int, str],
    model: Path,
    protected: Path | None,
    sets: Mapping[str, LatentSet],
    out: Path,
    label: str,
    device: str,
    workers: int,
    costs: Path | None = None,
    compute: Compute = PLAIN,
    code: str = "",
    held_out: Mapping[str, LatentSet] = MappingProxyType({}),
) -> None:
    """One user a set, side by side on a CPU; each leaves `out`/NAME.safetensors and .json.

    A user called SIDE/CLASS leaves its losses in SIDE.json, which holds the means of its classes and each one's own.
    Each draws from a stream of its own, the same in every arm: `seed` is the experiment's, and what they train for.
    Users who have finished wait below data/checkpoints until all have. What each took is written to `costs`.
    """
    waiting = {name: CHECKPOINTS / f"{label}-{name.replace('/', '-')}" for name in sets}

    def task(name: str) -> Callable[[], None]:
        how = {"device": device, "compute": compute, "code": code, "wait": True}
        own = {"seed": seed_of(*seed, name), "checkpoint_name": waiting[name].name, "held_out": held_out.get(name)}
        user = name.rpartition("/")[2]
        return lambda: adapt_and_save(user, model, protected, sets[name], settings, waiting[name], **own, **how)

    run_side_by_side({name: task(name) for name in sets}, workers, device)
    with folder_atomically(out) as temporary:
        records: dict[str, dict[str, Any]] = {}
        for name, folder in waiting.items():
            user = name.rpartition("/")[2]
            link_or_copy(folder / f"{user}.safetensors", temporary / f"{name}.safetensors")
            records[name] = read_json(folder / f"{user}.json", f"remove {folder}")
        for name, record in by_side(records).items():
            write_json(temporary / f"{name}.json", record)
    if costs:
        write_json(costs, {name: read_json(folder / COSTS, f"remove {folder}") for name, folder in waiting.items()})
    for folder in waiting.values():
        shutil.rmtree(folder)


def by_side(records: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The users' records by the name of their file: those of a side's classes become one, of means (each counts alike).

    What reads a side's losses need not know how many users it had.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, record in records.items():
        side, _, of_class = name.partition("/")
        if not of_class:
            found[name] = record
        else:
            found.setdefault(side, {"classes": {}})["classes"][of_class] = record
    for side in (side for side in found.values() if "classes" in side):
        users = list(side["classes"].values())
        side["losses"] = [statistics.fmean(step) for step in zip(*(user["losses"] for user in users), strict=True)]
        side["fixed_noise_loss"] = statistics.fmean(user["fixed_noise_loss"] for user in users)
        quarters = zip(*(user["fixed_noise_quarters"] for user in users), strict=True)
        side["fixed_noise_quarters"] = [statistics.fmean(quarter) for quarter in quarters]
        unseen = [user["held_out_loss"] for user in users]
        side["held_out_loss"] = None if None in unseen else statistics.fmean(unseen)
        side["n_changed"] = max(user["n_changed"] for user in users)
        side["n_images"] = sum(user["n_images"] for user in users)
    return found
