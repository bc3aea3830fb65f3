"""IMMA: start weights from which a user's fine-tuning gets nowhere (Zheng & Yeh 2023).

The bilevel problem max_attention min_attacker L is solved by first-order alternation on one set of
weights, which starts at theta_pre (METHOD, section 4): an attacker's step down the loss, then the
defender's step up the loss in the attention projections. Only those are kept.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from tqdm.auto import tqdm

from freezeasguard.checkpoints import Checkpoint, between_steps
from freezeasguard.costs import Meter
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.attention import attention_projections
from freezeasguard.models.batches import accumulated_loss, draw_batch, finite_loss
from freezeasguard.models.computing import configure, prepare
from freezeasguard.models.diffusion import NoiseSchedule, load_scheduler, load_unet
from freezeasguard.models.freezing import freeze
from freezeasguard.models.latents import LatentSet
from freezeasguard.models.protected import Protected, load_tensors
from freezeasguard.protections.protect import Inputs
from freezeasguard.seeds import seed_of
from freezeasguard.settings.compute import PLAIN, Compute
from freezeasguard.settings.methods import IMMA
from freezeasguard.users.training import optimizer_step


@dataclass
class IMMAHistory:
    """The attacker's loss before each of its steps, and the loss that each defender's step drives up."""

    inner: list[float] = field(default_factory=list)
    outer: list[float] = field(default_factory=list)


def immunise(
    unet: torch.nn.Module,
    schedule: NoiseSchedule,
    data: LatentSet,
    config: IMMA,
    *,
    generator: torch.Generator,
    compute: Compute = PLAIN,
    meter: Meter | None = None,
    checkpoint: Checkpoint | None = None,
    description: str = "immunising",
) -> tuple[dict[str, Tensor], IMMAHistory]:
    """The immunised attention projections by name, and the two losses of every pair of steps.

    `data` is the illegal side's mask-learning half. The UNet is used up: afterwards it holds the
    alternation's weights, the attacker's among them; the caller loads the model again. A run that was killed goes on
    from its last checkpoint and ends bit for bit as if it had not been.
    """
    if config.inner_lr is None or config.outer_lr is None:
        raise FreezeAsGuardError("imma.inner_lr or outer_lr is null; give the rates of the two that alternate")
    everything = freeze(unet, ())
    defended = attention_projections(unet, config.attn_scope)
    others = [name for name in everything if name not in set(defended)]
    attacker, defender = list(everything.values()), [everything[name] for name in defended]
    inner, outer = (
        torch.optim.AdamW(parameters, lr=lr, weight_decay=config.weight_decay, foreach=True)
        for parameters, lr in ((attacker, config.inner_lr), (defender, config.outer_lr))
    )
    history, remedy = IMMAHistory(), "lower imma.outer_lr or imma.inner_lr"
    if checkpoint and (state := checkpoint.load()):
        load_tensors(unet, state["tensors"])
        inner.load_state_dict(state["inner"])
        outer.load_state_dict(state["outer"])
        generator.set_state(state["generator"])
        history = IMMAHistory(**state["history"])
    if meter:
        meter.resumed_at = len(history.outer)
    device = attacker[0].device
    configure(compute, device)
    prepare(unet, compute)
    unet.train()

    def move(sign: float, losses: list[float], optimizer: torch.optim.Optimizer, moved: list[Parameter]) -> None:
        """One step up or down a drawn batch's loss, which is told as it is."""
        batch = draw_batch([data], config.batch_size, schedule, generator, device)
        loss = accumulated_loss(unet, schedule, batch, compute, sign=sign)
        losses.append(finite_loss(sign * loss.item(), description, f"step {len(losses)}", remedy))
        optimizer_step(loss, optimizer, moved, config.max_grad_norm)

    done = len(history.outer)
    bar = tqdm(range(done, config.steps), initial=done, total=config.steps, desc=description)
    with between_steps() as is_ending:
        for _ in bar:
            with meter.step() if meter else nullcontext():
                freeze(unet, ())
                move(1, history.inner, inner, attacker)
                freeze(unet, others)
                move(-1, history.outer, outer, defender)
            if checkpoint and (is_ending() or checkpoint.is_due(config.checkpoint_minutes)):
                states = {"inner": inner.state_dict(), "outer": outer.state_dict(), "history": asdict(history)}
                tensors = {name: parameter.detach() for name, parameter in everything.items()}
                checkpoint.save({"tensors": tensors, "generator": generator.get_state(), **states})
            if is_ending():
                break
    unet.eval()
    return {name: everything[name].detach().cpu().clone() for name in defended}, history


def protect(inputs: Inputs) -> Protected:
    """IMMA on the illegal side's mask-learning half."""
    config, seed = inputs.settings.imma, inputs.settings.seed
    assert config is not None
    unet = load_unet(inputs.model).to(inputs.device)
    schedule = NoiseSchedule.of(load_scheduler(inputs.model))
    illegal = inputs.data.select("illegal", ["mask_learning"])
    checkpoint, generator = inputs.checkpoint("running"), torch.Generator().manual_seed(seed_of(seed, "imma"))
    how: dict[str, Any] = {"compute": inputs.settings.compute, "meter": inputs.meter, "checkpoint": checkpoint}
    edited, history = immunise(unet, schedule, illegal, config, generator=generator, **how)
    checkpoint.clear()
    diagnostics = {"n_edited": len(edited), **asdict(history)}
    told = {**config.model_dump(exclude={"checkpoint_minutes"}), "seed": seed}
    return Protected("imma", frozenset(), edited, told, diagnostics)
