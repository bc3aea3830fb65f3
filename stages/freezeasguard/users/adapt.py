"""Users fine-tune: the simulated ones who give theta_ft, and the real ones after protection."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from freezeasguard.files import folder_atomically, write_json
from freezeasguard.models.diffusion import NoiseSchedule, load_scheduler, load_unet, stored_tensors
from freezeasguard.models.granularity import mask_digest
from freezeasguard.models.latents import CaseData, LatentSet
from freezeasguard.models.protected import Protected, load_tensors, read_protected
from freezeasguard.settings.params import Finetuning, Params
from freezeasguard.sides import FINETUNED_SIDES, SIDES
from freezeasguard.users.training import (
    Checkpoint,
    FinetuneConfig,
    changed_tensors,
    finetune,
    finetune_identity,
    fixed_noise_loss,
)
from freezeasguard.workers import resolve_device, run_side_by_side

CHECKPOINTS = Path("data/checkpoints")


def finetune_config(block: Finetuning) -> FinetuneConfig:
    return FinetuneConfig(**block.model_dump(exclude={"users"}))


def train_user(
    unet: torch.nn.Module,
    protected: Protected,
    schedule: NoiseSchedule,
    data: LatentSet,
    config: FinetuneConfig,
    device: str,
    **how: Any,
) -> list[float]:
    """Fine-tune the published UNet in place, as a user of the protected model does; `how` as in `finetune`."""
    load_tensors(unet, protected.edited)
    mask = {"frozen": protected.frozen, "frozen_units": protected.frozen_units, "granularity": protected.granularity}
    return finetune(unet.to(device), schedule, data, config, **mask, **how)


def adapt_and_save(
    name: str,
    model: Path,
    protected_folder: Path | None,
    data: LatentSet,
    config: FinetuneConfig,
    out: Path,
    *,
    seed: int,
    device: str,
    checkpoint_name: str,
) -> None:
    """Fine-tune the model as protected and write `name`.safetensors (changed tensors) and `name`.json."""
    unet = load_unet(model)
    protected = read_protected(protected_folder, unet) if protected_folder else Protected("full")
    schedule = NoiseSchedule.of(load_scheduler(model))
    mask = mask_digest(protected.frozen, protected.frozen_units, protected.granularity)
    identity = finetune_identity(config, seed=seed, mask=mask, data=_fingerprint(data))
    checkpoint = Checkpoint(CHECKPOINTS / f"{checkpoint_name}.pt", identity)
    how = {"checkpoint": checkpoint, "description": f"fine-tuning {checkpoint_name}"}
    generator = torch.Generator().manual_seed(seed)
    losses = train_user(unet, protected, schedule, data, config, device, generator=generator, **how)
    # Seeded apart from training, and alike for every arm.
    fixed = fixed_noise_loss(unet, schedule, data, torch.Generator().manual_seed(seed + 1))
    # Changes are told from the weights as published: an edited tensor counts as changed.
    changed = changed_tensors(unet.to("cpu"), stored_tensors(model))
    save_file(changed, out / f"{name}.safetensors")
    record = {"losses": losses, "fixed_noise_loss": fixed, "n_changed": len(changed), "n_images": len(data)}
    write_json(out / f"{name}.json", record)
    checkpoint.clear()


def _fingerprint(data: LatentSet) -> list[float]:
    """Cheap, and enough to refuse a checkpoint of other data."""
    return [len(data), float(data.latents.double().sum()), float(data.text.double().sum())]


def relearn_case(params: Params, case: str, model: Path, data: CaseData, out: Path) -> None:
    """theta_ft of Algorithm 1: full fine-tuning on the mask-learning halves, jointly or one user a side."""
    names = ["joint"] if params.relearn.users == "joint" else list(SIDES)
    sets: dict[str, LatentSet] = {}
    for name in names:
        parts = [data.select(side, ["mask_learning"]) for side in FINETUNED_SIDES[name]]
        sets[name] = parts[0] if len(parts) == 1 else parts[0].join(parts[1])
    _run(params, model, None, sets, params.relearn, out, f"{case}-relearn")


def adapt_cell(params: Params, case: str, arm: str, model: Path, protected: Path, data: CaseData, out: Path) -> None:
    """The illegal and the legal user of a cell, each on the adaptation half of its side."""
    sets = {side: data.select(side, ["adaptation"]) for side in SIDES}
    block = params.adapt_block(case, arm)
    _run(params, model, protected, sets, block, out, f"{case}-{arm}")


def _run(
    params: Params,
    model: Path,
    protected: Path | None,
    sets: Mapping[str, LatentSet],
    block: Finetuning,
    out: Path,
    label: str,
) -> None:
    device = resolve_device(params.device)
    with folder_atomically(out) as temporary:

        def task(name: str) -> Any:
            return lambda: adapt_and_save(
                name,
                model,
                protected,
                sets[name],
                finetune_config(block),
                temporary,
                seed=params.seed,
                device=device,
                checkpoint_name=f"{label}-{name}",
            )

        run_side_by_side({name: task(name) for name in sets}, params.workers, device)
