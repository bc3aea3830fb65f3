"""Learned anchors (ours): frozen tensors whose values are chosen so that the illegal user gets nowhere.

A mask freezes units at theta_pre; an edit (UCE, IMMA) moves units that the user then trains back. An anchor does both:
in m theta_pre + (1 - m) theta_ft the units with m = 1 are held at phi instead of theta_pre. phi is learned as the mask
is, in an upper level over simulated users, one a side, who re-adapt around it:

    lower   user_s:  theta_s <- AdamW step on L_s(phi, theta_s), phi held         s = illegal, legal
    upper   phi:     -lambda_1 min(L_illegal(phi, theta_illegal), cap) + lambda_2 L_legal(phi, theta_legal)
                     + lambda_3 D(phi),   D = mean |u(phi, theta_pre) - u(theta_pre)|^2

The gradient of phi is first order: users' weights are constants in it. D holds what is published - phi among
theta_pre's other tensors - to the pretrained model's own predictions, on images of neutral prompts that the pretrained
model generates itself, so that no data are needed, and on both sides'; a share of each under the empty prompt, which
guidance asks for and no user trains. Without the sides' images phi would do its work before anybody trains: break what
the illegal side's prompts ask for, and with it whatever is like them. Beyond the cap the illegal term is silent: a user
who learns nothing need not be driven further.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from freezeasguard.checkpoints import Checkpoint, between_steps
from freezeasguard.costs import Meter
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.batches import Batch, accumulated_loss, draw_batch, finite_loss, fixed_noise_loss
from freezeasguard.models.computing import autocast, configure, prepare
from freezeasguard.models.diffusion import (
    NoiseSchedule,
    encode_text,
    load_scheduler,
    load_text,
    load_unet,
    predict,
    tokenize,
)
from freezeasguard.models.freezing import freeze
from freezeasguard.models.latents import LatentSet
from freezeasguard.models.protected import Protected
from freezeasguard.models.sampling import sample, starting_noise
from freezeasguard.protections.components import component_tensors
from freezeasguard.protections.protect import Inputs
from freezeasguard.seeds import seed_of
from freezeasguard.settings.compute import PLAIN, Compute
from freezeasguard.settings.methods import Anchored
from freezeasguard.sides import SIDES
from freezeasguard.users.training import optimizer_step

REMEDY = "lower methods.anchored.outer_lr or user_lr"


@dataclass
class AnchorHistory:
    """Before each upper step: both users' losses, and D."""

    illegal: list[float] = field(default_factory=list)
    legal: list[float] = field(default_factory=list)
    published: list[float] = field(default_factory=list)


class _User:
    """A simulated user: their own tensors beside the anchors, and AdamW's moments of them."""

    def __init__(self, parameters: Mapping[str, Any], published: Mapping[str, Tensor], config: Anchored) -> None:
        self.tensors = {name: published[name].clone() for name in parameters}
        self.optimizer = torch.optim.AdamW(
            parameters.values(), lr=config.user_lr, weight_decay=config.weight_decay, foreach=True
        )


class AnchorLearner:
    """The state of the two levels, and their moves: `user_step` and `anchor_step`.

    The network's own tensors hold the anchors, and beside them those of whoever is at work: a user, or theta_pre.
    """

    def __init__(
        self,
        unet: torch.nn.Module,
        schedule: NoiseSchedule,
        data: Mapping[str, LatentSet],
        neutral: LatentSet,
        empty_text: Tensor,
        config: Anchored,
        generator: torch.Generator,
        compute: Compute = PLAIN,
    ) -> None:
        """`data` is each side's mask-learning half; `neutral`, images of the pretrained model's own."""
        self.unet, self.schedule, self.data, self.neutral = unet, schedule, data, neutral
        self.empty_text = empty_text
        self.config, self.generator, self.compute = config, generator, compute
        self.parameters: dict[str, Any] = freeze(unet, ())
        shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        self.anchors = sorted(component_tensors(config.component, shapes))
        self.others = [name for name in self.parameters if name not in set(self.anchors)]
        self.published = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.device = next(iter(self.parameters.values())).device
        configure(compute, self.device)
        prepare(unet, compute)
        self.cap = config.cap * self._loss_now(data["illegal"])
        self.optimizer = torch.optim.AdamW(
            [self.parameters[name] for name in self.anchors], lr=config.outer_lr, weight_decay=0.0, foreach=True
        )
        self.history = AnchorHistory()
        self.users = self._new_users()
        unet.train()

    def _new_users(self) -> dict[str, _User]:
        own = {name: self.parameters[name] for name in self.others}
        return {side: _User(own, self.published, self.config) for side in SIDES}

    def _wear(self, tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
        for name in names:
            self.parameters[name].data = tensors[name]

    def _loss_now(self, data: LatentSet) -> float:
        """As the network stands, at draws of their own, the same in every call."""
        return fixed_noise_loss(self.unet, self.schedule, data, torch.Generator().manual_seed(0))

    def _draw(self, sets: Sequence[LatentSet], *, flip: bool = True) -> Batch:
        return draw_batch(sets, self.config.batch_size, self.schedule, self.generator, self.device, flip=flip)

    def user_step(self, side: str) -> float:
        """Lower level: the side's user descends, the anchors held."""
        user = self.users[side]
        freeze(self.unet, self.anchors)
        self._wear(user.tensors, self.others)
        loss = accumulated_loss(self.unet, self.schedule, self._draw([self.data[side]]), self.compute)
        value = finite_loss(loss.item(), f"the {side} user", f"round {len(self.history.legal)}", REMEDY)
        own = [self.parameters[name] for name in self.others]
        optimizer_step(loss, user.optimizer, own, self.config.max_grad_norm)
        return value

    def _add(self, who: str, weight: float, batch: Batch, target: Tensor | None = None, cap: float = math.inf) -> float:
        """Add the gradient of weight times a loss, as the network stands, to the anchors' `.grad`; returns the loss.

        From the cap on there is none, and what earlier micro batches left goes: such a term comes first.
        """
        loss = accumulated_loss(self.unet, self.schedule, batch, self.compute, sign=weight, target=target)
        value = loss.item() / weight if weight else 0.0
        if value >= cap:
            for name in self.anchors:
                self.parameters[name].grad = None
        elif weight:
            loss.backward()
        return finite_loss(value, who, f"round {len(self.history.legal)}", REMEDY)

    def side_gradient(self, side: str, batch: Batch) -> float:
        """Add the side's term, at its user's weights; returns its loss."""
        self._wear(self.users[side].tensors, self.others)
        if side == "illegal":
            return self._add("the illegal side", -self.config.lambda_illegal, batch, cap=self.cap)
        return self._add("the legal side", self.config.lambda_legal, batch)

    def published_gradient(self, batch: Batch) -> float:
        """Add lambda_3 D's, of what is published; returns D."""
        self._wear(self.published, self.others)
        anchors = {name: self.parameters[name].data for name in self.anchors}
        self._wear(self.published, self.anchors)
        with torch.no_grad(), autocast(self.compute, self.device):
            pretrained = predict(self.unet, self.schedule, *batch)
        self._wear(anchors, self.anchors)
        return self._add("what is published", self.config.lambda_published, batch, target=pretrained)

    def gradient(self) -> dict[str, float]:
        """The anchors' gradient in `.grad`, on fresh batches; the three values by name."""
        freeze(self.unet, self.others)
        # The illegal term first: where it is silent it clears what it left.
        found = {side: self.side_gradient(side, self._draw([self.data[side]])) for side in SIDES}
        return {**found, "published": self.published_gradient(self.held())}

    def held(self) -> Batch:
        """What D is taken at: neutral images and both sides', the first of each under the empty prompt."""
        parts = [self._draw([self.neutral], flip=False), *(self._draw([self.data[side]]) for side in SIDES)]
        n_empty = round(self.config.empty_share * self.config.batch_size)
        for part in parts:
            part.text[:n_empty] = self.empty_text.to(part.text)
        return Batch._make(torch.cat(tensors) for tensors in zip(*parts, strict=True))

    def anchor_step(self) -> None:
        """Upper level: AdamW on the anchors; its rate falls to 0 over the second half, as its last noise is drift."""
        (group,) = self.optimizer.param_groups
        left = 1 - len(self.history.legal) / self.config.rounds
        group["lr"] = self.config.outer_lr * min(1.0, 2 * left)
        for name, value in self.gradient().items():
            getattr(self.history, name).append(value)
        anchors = [self.parameters[name] for name in self.anchors]
        torch.nn.utils.clip_grad_norm_(anchors, self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def round(self) -> None:
        """Users start again from the published model every so often: they must not only be late attackers."""
        done = len(self.history.legal)
        if done and done % self.config.restart_rounds == 0:
            self.users = self._new_users()
        for side in SIDES:
            for _ in range(self.config.user_steps):
                self.user_step(side)
        self.anchor_step()

    def state(self) -> dict[str, Any]:
        return {
            "anchors": {name: self.parameters[name].detach() for name in self.anchors},
            "optimizer": self.optimizer.state_dict(),
            "users": {side: (user.tensors, user.optimizer.state_dict()) for side, user in self.users.items()},
            "generator": self.generator.get_state(),
            "history": asdict(self.history),
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        for name, tensor in state["anchors"].items():
            self.parameters[name].copy_(tensor)
        self.optimizer.load_state_dict(state["optimizer"])
        for side, (tensors, moments) in state["users"].items():
            for name, tensor in tensors.items():
                self.users[side].tensors[name].copy_(tensor)
            self.users[side].optimizer.load_state_dict(moments)
        self.generator.set_state(state["generator"])
        self.history = AnchorHistory(**state["history"])

    def learn(self, meter: Meter | None = None, checkpoint: Checkpoint | None = None) -> dict[str, Tensor]:
        """The anchors by name; uses the network up. A run that was killed goes on, and ends bit for bit alike."""
        if checkpoint and (state := checkpoint.load()):
            self.restore(state)
        done, n = len(self.history.legal), self.config.rounds
        if meter:
            meter.resumed_at = done
        bar = tqdm(range(done, n), initial=done, total=n, desc="learning the anchors")
        with between_steps() as is_ending:
            for _ in bar:
                with meter.step() if meter else nullcontext():
                    self.round()
                bar.set_postfix({name: f"{values[-1]:.3f}" for name, values in asdict(self.history).items()})
                if checkpoint and (is_ending() or checkpoint.is_due(self.config.checkpoint_minutes)):
                    checkpoint.save(self.state())
                if is_ending():
                    break
        self.unet.eval()
        return {name: self.parameters[name].detach().cpu().clone() for name in self.anchors}

    def neutral_losses(self, images: LatentSet) -> dict[str, float]:
        """The denoising loss on neutral images: of the pretrained model, and of what is published instead."""
        anchors, found = {name: self.parameters[name].data for name in self.anchors}, {}
        self._wear(self.published, self.others)
        for name, worn in (("anchored", anchors), ("pretrained", self.published)):
            self._wear(worn, self.anchors)
            found[name] = self._loss_now(images)
        return found


def neutral_images(
    inputs: Inputs, unet: torch.nn.Module, config: Anchored, key: Literal["neutral_prompts", "unseen_prompts"]
) -> LatentSet:
    """What the pretrained model makes of the prompts under a key, as latents; both flips are the image itself."""
    prompts, each = list(getattr(config, key)), config.neutral_images
    if not prompts:
        raise FreezeAsGuardError(f"methods.anchored.{key} is empty; name prompts that belong to neither side")
    tokenizer, encoder = load_text(inputs.model)
    text = encode_text(encoder, tokenize(tokenizer, prompts)[0]).repeat_interleave(each, 0)
    named = [prompt for prompt in prompts for _ in range(each)]
    shape = inputs.data.latents.shape[2:]
    noise = starting_noise(named, list(range(each)) * len(prompts), shape, inputs.settings.seed)
    how = {"steps": config.neutral_steps, "guidance_scale": config.neutral_guidance, "label": "neutral images"}
    scheduler, made = load_scheduler(inputs.model), []
    for part, words in zip(noise.split(config.batch_size), text.split(config.batch_size), strict=True):
        part, words, empty = (tensor.to(inputs.device) for tensor in (part, words, inputs.data.empty_text))
        made.append(sample(unet, scheduler, part, words, empty, compute=inputs.settings.compute, **how).cpu())
    latents = torch.cat(made)
    return LatentSet(torch.stack([latents, latents], 1), text)


def protect(inputs: Inputs) -> Protected:
    """Anchors of a component, learned on the mask-learning halves of both sides."""
    config, settings = Anchored.model_validate(inputs.settings.own), inputs.settings
    unet = load_unet(inputs.model).to(inputs.device)
    schedule = NoiseSchedule.of(load_scheduler(inputs.model))
    data = {side: inputs.data.select(side, ["mask_learning"]) for side in SIDES}
    neutral, unseen = (neutral_images(inputs, unet, config, key) for key in ("neutral_prompts", "unseen_prompts"))
    generator = torch.Generator().manual_seed(seed_of(settings.seed, "anchored"))
    empty_text = inputs.data.empty_text
    learner = AnchorLearner(unet, schedule, data, neutral, empty_text, config, generator, settings.compute)
    checkpoint = inputs.checkpoint("running")
    edited = learner.learn(inputs.meter, checkpoint)
    neutral_losses = learner.neutral_losses(unseen)
    checkpoint.clear()
    published = learner.published
    change = {n: float((t - published[n].cpu()).norm() / published[n].cpu().norm()) for n, t in edited.items()}
    diagnostics = {"cap": learner.cap, "neutral_losses": neutral_losses, "relative_change": change}
    diagnostics |= asdict(learner.history)
    told = {**config.model_dump(exclude={"checkpoint_minutes"}), "seed": settings.seed}
    return Protected("anchored", frozenset(edited), edited, told, diagnostics)
