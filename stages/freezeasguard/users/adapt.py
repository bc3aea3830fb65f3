"""The users after protection: each side's fine-tunes the model of one arm, on its adaptation half."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from freezeasguard.files import folder_atomically, write_json
from freezeasguard.models.batches import finite_loss, fixed_noise_loss
from freezeasguard.models.diffusion import NoiseSchedule, load_scheduler, load_unet, model_hash, stored_tensors
from freezeasguard.models.granularity import mask_digest
from freezeasguard.models.latents import CaseData, LatentSet
from freezeasguard.models.protected import Protected, read_protected
from freezeasguard.settings.resolve import AdaptSettings
from freezeasguard.settings.users import Finetuning
from freezeasguard.sides import SIDES
from freezeasguard.users.registry import COMPLIANT, attacker
from freezeasguard.users.training import Checkpoint, changed_tensors
from freezeasguard.workers import run_side_by_side

CHECKPOINTS = Path("data/checkpoints")


def run_identity(
    settings: Finetuning,
    *,
    seed: int,
    tensors: str,
    schedule: NoiseSchedule,
    protected: Protected,
    data: LatentSet,
    device: str,
) -> dict[str, Any]:
    """All that a user's run depends on: a checkpoint is taken up again where every entry agrees, and nowhere else.

    Args:
        tensors: the hash of the published UNet (see `model_hash`); device: of it the type alone counts.
    """
    return {
        "settings": settings.model_dump(exclude={"checkpoint_steps"}),
        "seed": seed,
        "model": tensors,
        "schedule": [schedule.prediction_type, _digest(schedule.alphas_cumprod)],
        "edited": model_hash(protected.edited),
        "mask": mask_digest(protected.frozen, protected.frozen_units, protected.granularity),
        "data": [_digest(data.latents), _digest(data.text)],
        "device": device.partition(":")[0],
        "torch": str(torch.__version__),  # a plain string: a checkpoint holds no other classes, or is not read back
    }


def _digest(tensor: torch.Tensor) -> str:
    content = tensor.detach().cpu().contiguous()
    return hashlib.sha256(f"{content.dtype}{tuple(content.shape)}".encode() + content.numpy().tobytes()).hexdigest()


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
) -> None:
    """Fine-tune the model as protected and write `name`.safetensors (changed tensors) and `name`.json."""
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
        device=device,
    )
    checkpoint = Checkpoint(CHECKPOINTS / f"{checkpoint_name}.pt", identity)
    how = {"checkpoint": checkpoint, "description": f"fine-tuning {checkpoint_name}"}
    attack = attacker(getattr(settings, "attacker", COMPLIANT))
    generator = torch.Generator().manual_seed(seed)
    losses = attack(unet, protected, schedule, data, settings, device, generator=generator, **how)
    # Seeded apart from training, and alike for every arm.
    fixed = finite_loss(
        fixed_noise_loss(unet, schedule, data, torch.Generator().manual_seed(seed + 1)),
        f"fine-tuning {checkpoint_name}",
        "the end",
        "lower its lr (adapt.lr or relearn.lr)",
    )
    # Changes are told from the weights as published: an edited tensor counts as changed.
    changed = changed_tensors(unet.to("cpu"), published)
    save_file(changed, out / f"{name}.safetensors")
    record = {"losses": losses, "fixed_noise_loss": fixed, "n_changed": len(changed), "n_images": len(data)}
    write_json(out / f"{name}.json", record)
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
) -> None:
    """The illegal and the legal user of a cell, each on the adaptation half of its side."""
    sets = {side: data.select(side, ["adaptation"]) for side in SIDES}
    train_users(settings.finetuning, settings.seed, model, protected, sets, out, label, device, workers)


def train_users(
    settings: Finetuning,
    seed: int,
    model: Path,
    protected: Path | None,
    sets: Mapping[str, LatentSet],
    out: Path,
    label: str,
    device: str,
    workers: int,
) -> None:
    """One user a set, side by side on a CPU; each leaves `out`/NAME.safetensors and .json."""
    with folder_atomically(out) as temporary:

        def task(name: str) -> Callable[[], None]:
            own = {"seed": seed, "device": device, "checkpoint_name": f"{label}-{name}"}
            return lambda: adapt_and_save(name, model, protected, sets[name], settings, temporary, **own)

        run_side_by_side({name: task(name) for name in sets}, workers, device)
