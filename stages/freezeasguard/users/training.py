"""THE fine-tuning loop: every user, legal or illegal, simulated or real, trains through it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from freezeasguard.files import write_atomically
from freezeasguard.models.batches import drawn_loss, finite_loss
from freezeasguard.models.diffusion import NoiseSchedule, named_tensors
from freezeasguard.models.freezing import Frozen
from freezeasguard.models.latents import LatentSet
from freezeasguard.settings.users import Finetuning


class Checkpoint:
    """Where a run that may be killed leaves its state; read back only by the very same run."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = dict(identity)

    def load(self) -> dict[str, Any] | None:
        """The state, or None where there is none of this run (torn and foreign files count as none)."""
        try:
            saved = torch.load(self.path, weights_only=True)
        except FileNotFoundError:
            return None
        except Exception:  # a torn file raises anything from EOFError to UnpicklingError
            self.clear()
            return None
        known = isinstance(saved, dict) and saved.get("identity") == self.identity
        return saved["state"] if known else None

    def save(self, state: Mapping[str, Any]) -> None:
        with write_atomically(self.path) as temporary:
            torch.save({"identity": self.identity, "state": dict(state)}, temporary)

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)


def optimizer_step(
    loss: Tensor, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], max_grad_norm: float
) -> None:
    """One step down `loss`, its gradient clipped by global norm."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()


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
    checkpoint: Checkpoint | None = None,
    description: str = "fine-tuning",
) -> list[float]:
    """Fine-tune in place, but for what is frozen; returns the loss of every step.

    A run that was killed goes on from its last checkpoint and ends bit for bit as if it had not been.

    Args:
        frozen: names of the tensors frozen whole.
        frozen_units: bool [n_units] by name, of those frozen in part (see `Frozen`).
    """
    with Frozen(unet, frozen, frozen_units, granularity) as held:
        if not held.trainable or not config.steps:
            # rho = 1, or an arm before its users train: the model stays what it is.
            return []
        return _train(unet, schedule, data, config, held, generator, checkpoint, description)


def _train(
    unet: torch.nn.Module,
    schedule: NoiseSchedule,
    data: LatentSet,
    config: Finetuning,
    held: Frozen,
    generator: torch.Generator,
    checkpoint: Checkpoint | None,
    description: str,
) -> list[float]:
    trainable = held.trainable
    parameters = list(trainable.values())
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, foreach=True)
    held.guard(optimizer)
    losses: list[float] = []
    if checkpoint and (state := checkpoint.load()):
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(state["tensors"][name])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        losses = state["losses"]
    unet.train()
    bar = tqdm(range(len(losses), config.steps), initial=len(losses), total=config.steps, desc=description)
    for step in bar:
        loss = drawn_loss(unet, schedule, data, config.batch_size, generator, flip=config.flip)
        losses.append(finite_loss(loss.item(), description, f"step {step}", "lower its lr"))
        optimizer_step(loss, optimizer, parameters, config.max_grad_norm)
        if step % 10 == 0:
            bar.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.4f}")
        if checkpoint and (step + 1) % config.checkpoint_steps == 0 and step + 1 < config.steps:
            tensors = {name: p.detach().clone() for name, p in trainable.items()}
            checkpoint.save(
                {
                    "tensors": tensors,
                    "optimizer": optimizer.state_dict(),
                    "generator": generator.get_state(),
                    "losses": losses,
                }
            )
    unet.eval()
    optimizer.zero_grad(set_to_none=True)
    return losses


def changed_tensors(unet: torch.nn.Module, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that differ from `before`, by name, detached; `before` may be stored in another type."""
    return {
        name: tensor.detach().clone()
        for name, tensor in sorted(named_tensors(unet).items())
        if not torch.equal(tensor.detach(), before[name].to(tensor.dtype))
    }
