"""IMMA: start weights from which a user's fine-tuning gets nowhere (Zheng & Yeh 2023).

The bilevel problem max_attention min_attacker L is solved by first-order alternation on one set of
weights, which starts at theta_pre (METHOD, section 4): an attacker's step down the loss, then the
defender's step up the loss in the attention projections. Only those are kept.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from tqdm.auto import tqdm

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.batches import drawn_loss, finite_loss
from freezeasguard.models.diffusion import NoiseSchedule, load_scheduler, load_unet, named_tensors
from freezeasguard.models.freezing import freeze
from freezeasguard.models.latents import LatentSet
from freezeasguard.models.protected import Protected
from freezeasguard.protections.protect import Inputs
from freezeasguard.settings.methods import IMMA
from freezeasguard.users.training import optimizer_step

ATTENTIONS = {"all": ("attn1", "attn2"), "cross": ("attn2",)}
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")


@dataclass
class IMMAHistory:
    """The attacker's loss before each of its steps, and the loss that each defender's step drives up."""

    inner: list[float] = field(default_factory=list)
    outer: list[float] = field(default_factory=list)


def defended_names(unet: torch.nn.Module, attn_scope: str) -> tuple[str, ...]:
    """The attention projections in scope, by sorted name."""
    names = tuple(
        name
        for name in sorted(named_tensors(unet))
        if any(part in ATTENTIONS[attn_scope] for part in name.split("."))
        and any(part in PROJECTIONS for part in name.split("."))
    )
    if not names:
        raise FreezeAsGuardError("the UNet has no attention projections (attn1, attn2): IMMA defends those")
    return names


def immunise(
    unet: torch.nn.Module,
    schedule: NoiseSchedule,
    data: LatentSet,
    config: IMMA,
    *,
    generator: torch.Generator,
    description: str = "immunising",
) -> tuple[dict[str, Tensor], IMMAHistory]:
    """The immunised attention projections by name, and the two losses of every pair of steps.

    `data` is the illegal side's mask-learning half. The UNet is used up: afterwards it holds the
    alternation's weights, the attacker's among them; the caller loads the model again.
    """
    everything = freeze(unet, ())
    defended = defended_names(unet, config.attn_scope)
    others = [name for name in everything if name not in set(defended)]
    attacker, defender = list(everything.values()), [everything[name] for name in defended]
    inner, outer = (
        torch.optim.AdamW(parameters, lr=lr, weight_decay=config.weight_decay, foreach=True)
        for parameters, lr in ((attacker, config.inner_lr), (defender, config.outer_lr))
    )
    history, remedy = IMMAHistory(), "lower imma.outer_lr or imma.inner_lr"
    unet.train()
    for step in tqdm(range(config.steps), desc=description):
        freeze(unet, ())
        loss = drawn_loss(unet, schedule, data, config.batch_size, generator)
        history.inner.append(finite_loss(loss.item(), description, f"step {step}", remedy))
        optimizer_step(loss, inner, attacker, config.max_grad_norm)
        freeze(unet, others)
        loss = drawn_loss(unet, schedule, data, config.batch_size, generator)
        history.outer.append(finite_loss(loss.item(), description, f"step {step}", remedy))
        optimizer_step(-loss, outer, defender, config.max_grad_norm)
    unet.eval()
    return {name: everything[name].detach().cpu().clone() for name in defended}, history


def protect(inputs: Inputs) -> Protected:
    """IMMA on the illegal side's mask-learning half."""
    config, seed = inputs.settings.imma, inputs.settings.seed
    assert config is not None
    unet = load_unet(inputs.model).to(inputs.device)
    schedule = NoiseSchedule.of(load_scheduler(inputs.model))
    illegal = inputs.data.select("illegal", ["mask_learning"])
    edited, history = immunise(unet, schedule, illegal, config, generator=torch.Generator().manual_seed(seed))
    diagnostics = {"n_edited": len(edited), **asdict(history)}
    return Protected("imma", frozenset(), edited, {**config.model_dump(), "seed": seed}, diagnostics)
