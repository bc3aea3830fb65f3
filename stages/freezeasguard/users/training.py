"""THE fine-tuning loop: every user, legal or illegal, simulated or real, trains through it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor
from tqdm.auto import tqdm

from freezeasguard.checkpoints import Checkpoint, between_steps
from freezeasguard.costs import Meter
from freezeasguard.models.batches import accumulated_loss, draw_batch, finite_loss
from freezeasguard.models.computing import prepare
from freezeasguard.models.diffusion import NoiseSchedule, named_tensors
from freezeasguard.models.freezing import Frozen
from freezeasguard.models.latents import LatentSet
from freezeasguard.models.protected import load_tensors
from freezeasguard.settings.compute import PLAIN, Compute
from freezeasguard.settings.users import Finetuning


def optimizer_step(
    loss: Tensor, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], max_grad_norm: float
) -> None:
    """One step down `loss` and what earlier micro batches left in `.grad`, clipped by global norm.

    Gradients are freed at once, so that the next forward pass has their memory.
    """
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def finetune(
    unet: torch.nn.Module,
    schedule: NoiseSchedule,
    data: LatentSet,
    config: Finetuning,
    *,
    frozen: Collection[str] = (),
    frozen_units: Mapping[str, Tensor] | None = None,
    granularity: str = "tensor",
    generator: torch.Generator,
    compute: Compute = PLAIN,
    meter: Meter | None = None,
    checkpoint: Checkpoint | None = None,
    description: str = "fine-tuning",
) -> list[float]:
    """Fine-tune in place, but for what is frozen; returns the loss of every step.

    A run that was killed goes on from its last checkpoint and ends bit for bit as if it had not been; SIGTERM makes it
    write one before it ends.

    Args:
        frozen: names of the tensors frozen whole.
        frozen_units: bool [n_units] by name, of those frozen in part (see `Frozen`).
    """
    with Frozen(unet, frozen, frozen_units, granularity) as held:
        if not held.trainable or not config.steps:
            # rho = 1, or an arm before its users train: the model stays what it is.
            return []
        return _train(unet, schedule, data, config, held, generator, compute, meter, checkpoint, description)


def _train(
    unet: torch.nn.Module,
    schedule: NoiseSchedule,
    data: LatentSet,
    config: Finetuning,
    held: Frozen,
    generator: torch.Generator,
    compute: Compute,
    meter: Meter | None,
    checkpoint: Checkpoint | None,
    description: str,
) -> list[float]:
    trainable = held.trainable
    parameters = list(trainable.values())
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, foreach=True)
    held.guard(optimizer)
    losses: list[float] = []
    if checkpoint and (state := checkpoint.load()):
        load_tensors(unet, state["tensors"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        losses = state["losses"]
        if meter:
            meter.resumed_at = len(losses)
    prepare(unet, compute)
    unet.train()
    bar = tqdm(range(len(losses), config.steps), initial=len(losses), total=config.steps, desc=description)
    with between_steps() as is_ending:
        for step in bar:
            batch = draw_batch([data], config.batch_size, schedule, generator, device, flip=config.flip)
            with meter.step() if meter else nullcontext():
                loss = accumulated_loss(unet, schedule, batch, compute)
                losses.append(finite_loss(loss.item(), description, f"step {step}", "lower its lr"))
                optimizer_step(loss, optimizer, parameters, config.max_grad_norm)
            if step % 10 == 0:
                bar.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.4f}")
            counted = (step + 1) % (config.checkpoint_steps or math.inf) == 0
            is_due = counted or (checkpoint is not None and checkpoint.is_due(config.checkpoint_minutes))
            if checkpoint and (is_ending() or (is_due and step + 1 < config.steps)):
                checkpoint.save(
                    {
                        "tensors": {name: p.detach() for name, p in trainable.items()},
                        "optimizer": optimizer.state_dict(),
                        "generator": generator.get_state(),
                        "losses": losses,
                    }
                )
            if is_ending():
                break
    unet.eval()
    return losses


def changed_tensors(unet: torch.nn.Module, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that differ from `before`, by name, detached; `before` may be stored in another type."""
    return {
        name: tensor.detach().clone()
        for name, tensor in sorted(named_tensors(unet).items())
        if not torch.equal(tensor.detach(), before[name].to(tensor.dtype))
    }
