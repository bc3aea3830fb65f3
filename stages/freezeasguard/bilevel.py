"""Bilevel mask learning (paper, Algorithm 1): an upper loop over the mask, a lower loop over the user.

What lives in memory is, for each simulated user, `mixed` = m theta_pre + (1 - m) theta_ft (the weights
that the UNet runs with) and `delta` = theta_pre - theta_ft. Gradients are consumed bucket by bucket while
backprop produces them, so that no second full-size copy of them ever exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from freezeasguard.data.latents import SIDES, LatentSet
from freezeasguard.diffusion import NoiseSchedule, denoising_loss, draw_noise, named_tensors
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.mask import (
    check_freeze_ratio,
    check_names,
    hard_mask,
    logit_gradients,
    project_to_ratio,
    soft_mask,
    sparsity_gradient,
)

BUCKET_BYTES = 64 * 2**20
"""Gradients held at once before they are consumed; at tiny scale one bucket holds the whole UNet."""


@dataclass(frozen=True)
class MaskConfig:
    """One reading of the paper (METHOD, section 3; the presets are in `freezeasguard.config`)."""

    users: str
    """joint: one user fine-tunes on both sides (paper). per_side: one user a side (our extension)."""
    mask_steps: int
    user_steps: int
    """Lower steps per mask step; L in Algorithm 1."""
    order: str
    """user_first (Algorithm 1) or mask_first (authors' code)."""
    batch_size: int
    """Images a step over both sides; half of them come from each."""
    temperature: float
    logits_init: str
    """negative: m near 0 (paper). uniform: U(0, 1) (authors' code). ratio: small noise around m = rho."""
    derivative: str
    mask_optimizer: str
    """sgd (paper) or adam: an adaptive step for each logit."""
    mask_lr: float
    """Step size eta_1 of the mask."""
    sparsity: str
    """penalty: c (mean(m) - rho)^2 (Eq. 6). projection: mean(m) = rho after every step."""
    sparsity_weight: float
    """c; its gradient is not multiplied by mask_lr, as in the authors' code."""
    lambdas: str
    """proportional to the amounts of data (paper) or equal (authors' code: batch means, 1/2 each)."""
    normalise: bool
    """Divide each side's alignments by their mean size, so that neither side drowns the other."""
    lower_loss: str
    """sum of the two sides' mean losses (Eq. 7) or mixed: one mean over both (authors' code)."""
    user_lr: float
    """Learning rate eta_2 of the simulated user."""
    precision: str
    """float32, or bfloat16 for logits and delta (authors' code)."""


class GradientStream:
    """Hands over gradients in buckets as backprop completes them, and frees them.

    Used as a context around one backward pass. A tensor's hook fires when its gradient is final and no
    pending backward node needs its value, so that `consume` may update it in place.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        consume: Callable[[list[str], list[Tensor]], None],
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self._parameters = parameters
        self._consume = consume
        self._bucket_bytes = bucket_bytes
        self._bucket: dict[str, Tensor] = {}
        self._held = 0
        self.peak_bytes = 0

    def __enter__(self) -> GradientStream:
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(name))
            for name, parameter in self._parameters.items()
        ]
        return self

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            parameter.grad = None
            self._bucket[name] = gradient
            self._held += gradient.nbytes
            self.peak_bytes = max(self.peak_bytes, self._held)
            if self._held >= self._bucket_bytes:
                self._flush()

        return take

    @torch.no_grad()
    def _flush(self) -> None:
        if self._bucket:
            self._consume(list(self._bucket), list(self._bucket.values()))
        self._bucket = {}
        self._held = 0

    def __exit__(self, error_type: Any, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        if error_type is None:
            self._flush()


@dataclass
class SimulatedUser:
    """A user who fine-tunes on `sides` under the soft mask. Tensors by name."""

    sides: tuple[str, ...]
    mixed: dict[str, Tensor]
    delta: dict[str, Tensor]

    @classmethod
    @torch.no_grad()
    def start(
        cls,
        sides: tuple[str, ...],
        pretrained: Mapping[str, Tensor],
        finetuned: Mapping[str, Tensor],
        mask: Mapping[str, float],
        delta_dtype: torch.dtype = torch.float32,
    ) -> SimulatedUser:
        """Mix theta_pre and theta_ft; tensors that fine-tuning left alone may be absent from `finetuned`."""
        check_names(finetuned, pretrained)
        mixed: dict[str, Tensor] = {}
        delta: dict[str, Tensor] = {}
        for name in sorted(pretrained):
            before = pretrained[name].detach()
            after = finetuned.get(name, before).to(before)
            if after.shape != before.shape:
                raise FreezeAsGuardError(
                    f"fine-tuned {name} is {tuple(after.shape)}, the model's {tuple(before.shape)}"
                )
            difference = before - after
            if delta_dtype not in (torch.float32, before.dtype):
                difference = difference.to(delta_dtype)
            delta[name] = difference
            mixed[name] = after + mask[name] * (before - after)
        return cls(sides, mixed, delta)

    def user_update(self, names: list[str], gradients: list[Tensor], trainable: list[float], lr: float) -> None:
        """One gradient-descent step of the user (paper, Eq. 9 and 10); consumes `gradients`.

        delta += lr g (1 - m);  mixed -= lr g (1 - m)^2, with `trainable` = 1 - m for each name.
        """
        step = gradients
        torch._foreach_mul_(step, [lr * t for t in trainable])
        delta = [self.delta[name] for name in names]
        if delta[0].dtype == step[0].dtype:
            torch._foreach_add_(delta, step)
        else:
            for d, s in zip(delta, step, strict=True):
                d.add_(s.to(d))
        torch._foreach_mul_(step, trainable)
        torch._foreach_sub_([self.mixed[name] for name in names], step)

    def alignments(self, names: list[str], gradients: list[Tensor]) -> Tensor:
        """<g_i, delta_i> for each name."""
        return torch.stack(
            [torch.dot(g.flatten(), self.delta[name].to(g).flatten()) for name, g in zip(names, gradients, strict=True)]
        )

    @torch.no_grad()
    def move_mask(self, names: Sequence[str], change: Sequence[float]) -> None:
        """mixed += (m_new - m_old) delta."""
        bucket: list[tuple[str, float]] = []
        held = 0
        for index, (name, by) in enumerate(zip(names, change, strict=True)):
            bucket.append((name, by))
            held += self.delta[name].nbytes
            if held >= BUCKET_BYTES or index == len(names) - 1:
                mixed = [self.mixed[n] for n, _ in bucket]
                moves = torch._foreach_mul([self.delta[n].to(self.mixed[n]) for n, _ in bucket], [b for _, b in bucket])
                torch._foreach_add_(mixed, moves)
                bucket, held = [], 0


@dataclass
class MaskHistory:
    """What happened, a value a mask step; and the mean task signal of each tensor."""

    loss: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    mean_mask: list[float] = field(default_factory=list)
    saturated: list[float] = field(default_factory=list)
    """Share of logits with m < 0.01 or m > 0.99, where the slope has all but vanished."""
    user_loss: list[float] = field(default_factory=list)
    signal_sum: dict[str, Tensor] = field(default_factory=dict)
    size_sum: dict[str, Tensor] = field(default_factory=dict)

    def record(self, side: str, alignments: Tensor, loss: float) -> None:
        self.loss[side].append(loss)
        zero = torch.zeros_like(alignments)
        self.signal_sum[side] = self.signal_sum.get(side, zero) + alignments
        self.size_sum[side] = self.size_sum.get(side, zero) + alignments.abs()

    def mean_signal(self, side: str) -> Tensor:
        """Mean <g_i, delta_i> [N] over mask steps."""
        return self.signal_sum[side] / max(1, len(self.loss[side]))

    def mean_size(self, side: str) -> Tensor:
        """Mean |<g_i, delta_i>| [N] over mask steps."""
        return self.size_sum[side] / max(1, len(self.loss[side]))


@dataclass(frozen=True)
class LearnedMask:
    names: tuple[str, ...]
    logits: Tensor
    initial_logits: Tensor
    history: MaskHistory

    def frozen(self, rho: float) -> frozenset[str]:
        return hard_mask(self.logits, self.names, rho)

    def initially_frozen(self, rho: float) -> frozenset[str]:
        """The top-rho of the initial logits: what the mask would be had nothing been learned."""
        return hard_mask(self.initial_logits, self.names, rho)


def initial_logits(n: int, config: MaskConfig, rho: float, generator: torch.Generator) -> Tensor:
    """The random start [n] (METHOD, reading 1)."""
    if config.logits_init == "negative":  # m = sigmoid(w / 0.2) below 0.0067 (paper, section 3.3)
        logits = -1 - torch.rand(n, generator=generator)
    elif config.logits_init == "uniform":  # m in 0.5..0.993 (authors' code)
        logits = torch.rand(n, generator=generator)
    elif config.logits_init == "ratio":
        noise = 0.01 * config.temperature * torch.randn(n, generator=generator)
        logits = project_to_ratio(noise, config.temperature, rho)
    else:
        raise FreezeAsGuardError(f"mask.logits_init is {config.logits_init!r}; use negative, uniform or ratio")
    return logits.to(torch.bfloat16).float() if config.precision == "bfloat16" else logits


class MaskOptimizer:
    """Moves the logits: task gradient, sparsity force, projection (paper, Eq. 5, 6 and 8)."""

    def __init__(self, config: MaskConfig, rho: float) -> None:
        self.config = config
        self.rho = rho
        self._moments: tuple[Tensor, Tensor] | None = None
        self._step = 0

    def _task_step(self, gradient: Tensor) -> Tensor:
        if self.config.mask_optimizer == "sgd":
            return self.config.mask_lr * gradient
        # Adam, with (0.9, 0.99): the signal of one batch is noisy, its sign over many is not.
        first, second = self._moments or (torch.zeros_like(gradient), torch.zeros_like(gradient))
        self._step += 1
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient.square()
        self._moments = (first, second)
        corrected = (second / (1 - 0.99**self._step)).sqrt()
        step = first / (1 - 0.9**self._step) / corrected.clamp_min(torch.finfo(corrected.dtype).tiny)
        return self.config.mask_lr * step

    def step(self, logits: Tensor, task: Tensor) -> Tensor:
        """New logits [N] from the task alignments [N] = -lambda_1 illegal + lambda_2 legal."""
        c = self.config
        new = logits - self._task_step(logit_gradients(task, logits, c.temperature, c.derivative))
        if c.sparsity == "penalty":
            new = new - sparsity_gradient(logits, c.temperature, self.rho, c.sparsity_weight, c.derivative)
        else:
            new = project_to_ratio(new, c.temperature, self.rho)
        return new.to(torch.bfloat16).to(logits) if c.precision == "bfloat16" else new


def side_weights(config: MaskConfig, n_images: Mapping[str, int]) -> dict[str, float]:
    """lambda_1 and lambda_2 of Eq. 5, as shares that add up to 1."""
    if config.lambdas == "equal":
        return {side: 0.5 for side in SIDES}
    total = sum(n_images[side] for side in SIDES)
    return {side: n_images[side] / total for side in SIDES}


class MaskLearner:
    """The state of Algorithm 1 and its two moves, `user_step` and `mask_step`."""

    def __init__(
        self,
        unet: torch.nn.Module,
        schedule: NoiseSchedule,
        data: Mapping[str, LatentSet],
        finetuned: Mapping[tuple[str, ...], Mapping[str, Tensor]],
        config: MaskConfig,
        rho: float,
        generator: torch.Generator,
    ) -> None:
        """`finetuned` holds theta_ft by the sides its user trained on: one entry, or one a side."""
        check_freeze_ratio(rho)
        expected = [SIDES] if config.users == "joint" else [(side,) for side in SIDES]
        if sorted(finetuned) != sorted(expected):
            found = ", ".join("+".join(sides) for sides in sorted(finetuned)) or "none"
            raise FreezeAsGuardError(
                f"mask.users is {config.users}, but the fine-tuned start models are: {found}; "
                f"set relearn.users to {config.users} and run `dvc repro relearn`"
            )
        self.unet, self.schedule, self.data, self.config = unet, schedule, data, config
        self.rho, self.generator = rho, generator
        self.parameters: dict[str, Any] = named_tensors(unet)
        self.names = tuple(sorted(self.parameters))
        self.position = {name: i for i, name in enumerate(self.names)}
        self.logits = initial_logits(len(self.names), config, rho, generator)
        self.initial_logits = self.logits.clone()
        self.optimizer = MaskOptimizer(config, rho)
        self.history = MaskHistory()
        self.weights = side_weights(config, {side: len(data[side]) for side in SIDES})
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
            parameter.grad = None
        mask = dict(zip(self.names, self.mask.tolist(), strict=True))
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        pretrained = {name: p.detach() for name, p in self.parameters.items()}
        self.users = [SimulatedUser.start(sides, pretrained, finetuned[sides], mask, dtype) for sides in expected]
        del pretrained
        self._wear(self.users[0])  # frees theta_pre: mixed and delta hold all there is to know

    @property
    def mask(self) -> Tensor:
        return soft_mask(self.logits, self.config.temperature)

    def _loss(self, sides: Sequence[str]) -> Tensor:
        """Per-sample losses of half a batch a side [sides, batch / 2]."""
        half = max(1, self.config.batch_size // 2)
        batches = [self.data[side].sample(half, self.generator) for side in sides]
        latents = torch.cat([latents for latents, _ in batches])
        text = torch.cat([text for _, text in batches])
        timesteps, noise = draw_noise(latents, self.schedule.n_timesteps, self.generator)
        parameter = next(iter(self.parameters.values()))
        moved = [x.to(parameter.device) for x in (latents, text, timesteps, noise)]
        return denoising_loss(self.unet, self.schedule, *moved).view(len(sides), half)

    def _wear(self, user: SimulatedUser) -> None:
        for name, parameter in self.parameters.items():
            parameter.data = user.mixed[name]

    def user_step(self, user: SimulatedUser) -> float:
        """Lower level: the user descends on its sides' losses (Eq. 7), through Eq. 9 and 10."""
        trainable = dict(zip(self.names, (1 - self.mask).tolist(), strict=True))
        self._wear(user)

        def update(names: list[str], gradients: list[Tensor]) -> None:
            user.user_update(names, gradients, [trainable[n] for n in names], self.config.user_lr)

        with GradientStream(self.parameters, update):
            losses = self._loss(user.sides).mean(1)
            loss = losses.sum() if self.config.lower_loss == "sum" else losses.mean()
            loss.backward()
        return float(loss.detach())

    def side_alignments(self, side: str) -> tuple[Tensor, float]:
        """<dL_side/dmixed_i, delta_i> [N], at the user who trains on that side; and the loss."""
        user = next(user for user in self.users if side in user.sides)
        self._wear(user)
        alignments = torch.zeros(len(self.names))

        def align(names: list[str], gradients: list[Tensor]) -> None:
            alignments[[self.position[name] for name in names]] = user.alignments(names, gradients).float().cpu()

        with GradientStream(self.parameters, align):
            loss = self._loss([side]).mean()
            loss.backward()
        return alignments, float(loss.detach())

    def mask_step(self) -> None:
        """Upper level: descend on -lambda_1 L_illegal + lambda_2 L_legal (Eq. 5) and the sparsity term."""
        signed = {"illegal": -self.weights["illegal"], "legal": self.weights["legal"]}
        task = torch.zeros(len(self.names))
        for side in SIDES:
            alignments, loss = self.side_alignments(side)
            self.history.record(side, alignments, loss)
            if self.config.normalise:
                alignments = alignments / alignments.abs().mean().clamp_min(torch.finfo(torch.float32).tiny)
            task += signed[side] * alignments
        before = self.mask
        self.logits = self.optimizer.step(self.logits, task)
        after = self.mask
        for user in self.users:
            user.move_mask(self.names, (after.double() - before.double()).tolist())
        self.history.mean_mask.append(float(after.mean()))
        self.history.saturated.append(float(((after < 0.01) | (after > 0.99)).float().mean()))

    def _round(self) -> None:
        def user_steps() -> None:
            for _ in range(self.config.user_steps):
                for user in self.users:
                    self.history.user_loss.append(self.user_step(user))

        if self.config.order == "user_first":
            user_steps()
            self.mask_step()
        else:
            self.mask_step()
            user_steps()

    def learn(self, description: str = "learning the mask") -> LearnedMask:
        """Algorithm 1. The learner uses the UNet up: afterwards it holds a user's mixed weights.

        A third copy, kept only to put theta_pre back, would cost what Eq. 8-10 save; load the model again.
        """
        bar = tqdm(range(self.config.mask_steps), desc=description)
        for _ in bar:
            self._round()
            bar.set_postfix({side: f"{self.history.loss[side][-1]:.3f}" for side in SIDES})
        return LearnedMask(self.names, self.logits, self.initial_logits, self.history)


def learn_without_signal(
    names: Sequence[str], config: MaskConfig, rho: float, generator: torch.Generator
) -> LearnedMask:
    """The same run with its task signal zeroed: initial logits and sparsity force alone.

    A learned mask that equals this one learned nothing. No network is needed, so it costs nothing.
    """
    start = initial_logits(len(names), config, rho, generator)
    optimizer = MaskOptimizer(config, rho)
    logits = start
    for _ in range(config.mask_steps):
        logits = optimizer.step(logits, torch.zeros(len(names)))
    return LearnedMask(tuple(names), logits, start, MaskHistory())
