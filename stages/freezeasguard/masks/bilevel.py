"""Bilevel mask learning (paper, Algorithm 1): an upper loop over the mask, a lower loop over the user.

The mask is one logit a unit - a tensor (the paper), a row or a weight - in one flat vector over the sorted tensor
names; see `simulated_user` for what of the weights lives in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from freezeasguard.checkpoints import Checkpoint, between_steps
from freezeasguard.costs import Meter
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.masks.mask import (
    CHUNK,
    chunkwise,
    hard_mask,
    hard_mask_by_parameters,
    logit_gradients,
    project_to_ratio,
    soft_mask,
    sparsity_gradient,
)
from freezeasguard.masks.simulated_user import GradientStream, SimulatedUser, exchange
from freezeasguard.models.batches import Batch, draw_batch, finite_loss
from freezeasguard.models.computing import autocast, configure, prepare
from freezeasguard.models.diffusion import NoiseSchedule, denoising_loss, named_tensors
from freezeasguard.models.granularity import check_freeze_ratio, n_units, split_units, spread_over_weights, top_units
from freezeasguard.models.latents import LatentSet
from freezeasguard.settings.compute import PLAIN, Compute
from freezeasguard.settings.mask import Mask
from freezeasguard.sides import SIDES

GOLDEN = (5**0.5 - 1) / 2
"""Steps of this size round a circle of length 1 cover it evenly, however many there are."""


USER_REMEDY = "lower mask.user_lr, or relearn.lr of the model that it starts from"


@dataclass
class MaskHistory:
    """What happened, a value a mask step; and the mean task signal of each unit."""

    loss: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    path_sum: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    """What the units' signals add up to (`MaskLearner.path_sum`); on a path, an estimate of the difference of the
    losses at its ends."""
    path_check: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of a path signal: `MaskLearner.path_check` of each side at the end."""
    mean_mask: list[float] = field(default_factory=list)
    saturated: list[float] = field(default_factory=list)
    """Share of logits with m < 0.01 or m > 0.99, where the slope has all but vanished."""
    user_loss: list[float] = field(default_factory=list)
    signal_sum: dict[str, Tensor] = field(default_factory=dict)
    size_sum: dict[str, Tensor] = field(default_factory=dict)

    def record(self, side: str, alignments: Tensor, loss: float, path_sum: float = 0.0) -> None:
        self.loss[side].append(loss)
        self.path_sum[side].append(path_sum)
        for sums, values in ((self.signal_sum, alignments.cpu()), (self.size_sum, alignments.abs().cpu())):
            sums.setdefault(side, torch.zeros_like(values)).add_(values)

    def mean_signal(self, side: str) -> Tensor:
        """Mean <g_i, delta_i> [N] over mask steps."""
        return self.signal_sum[side] / max(1, len(self.loss[side]))

    def mean_size(self, side: str) -> Tensor:
        """Mean |<g_i, delta_i>| [N] over mask steps."""
        return self.size_sum[side] / max(1, len(self.loss[side]))


@dataclass(frozen=True)
class LearnedMask:
    """Logits [N] over the units of all tensors, in the order of the sorted names."""

    shapes: Mapping[str, tuple[int, ...]]
    granularity: str
    logits: Tensor
    initial_logits: Tensor
    history: MaskHistory

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.shapes))

    def frozen(self, rho: float) -> frozenset[str]:
        """The names of the round(rho N) frozen tensors; rows and weights have no such names."""
        if self.granularity != "tensor":
            raise FreezeAsGuardError(f"a mask of granularity {self.granularity!r} freezes parts: use frozen_units")
        return hard_mask(self.logits, self.names, rho)

    def frozen_by_parameters(self, rho: float) -> frozenset[str]:
        """The names of the frozen tensors, which hold at least the share rho of all single weights."""
        return hard_mask_by_parameters(self.logits, {name: prod(self.shapes[name]) for name in self.names}, rho)

    def frozen_units(self, rho: float) -> dict[str, Tensor]:
        """bool [n_units] of every tensor; exactly round(rho N) units are True = frozen."""
        return split_units(self.top(rho), self.shapes, self.granularity)

    def top(self, rho: float) -> Tensor:
        """bool [N]: the frozen units."""
        return top_units(self.logits, rho)

    def initially_top(self, rho: float) -> Tensor:
        """bool [N]: the top-rho of the initial logits, what the mask would be had nothing been learned."""
        return top_units(self.initial_logits, rho)


def units_device(granularity: str, device: torch.device | str) -> torch.device:
    """Where logits and signals live: those of tensors, numbers to Python, on the host; others beside the weights."""
    return torch.device("cpu" if granularity == "tensor" else device)


def initial_logits(
    n: int, config: Mask, rho: float, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """The random start [n] (METHOD, reading 1), float32; drawn on the CPU, whatever the device."""
    if config.logits_init == "negative":  # m = sigmoid(w / 0.2) below 0.0067 (paper, section 3.3)
        logits = -1 - torch.rand(n, generator=generator).to(device)
    elif config.logits_init == "uniform":  # m in 0.5..0.993 (authors' code)
        logits = torch.rand(n, generator=generator).to(device)
    elif config.logits_init == "ratio":
        temperature = config.temperature_at(0)
        noise = 1e-5 * temperature * torch.randn(n, generator=generator).to(device)
        logits = project_to_ratio(noise, temperature, rho)
    else:
        raise FreezeAsGuardError(f"mask.logits_init is {config.logits_init!r}; use negative, uniform or ratio")
    return logits.to(torch.bfloat16).float() if config.precision == "bfloat16" else logits


class MaskOptimizer:
    """Moves the logits: task gradient, sparsity force, projection (paper, Eq. 5, 6 and 8)."""

    def __init__(self, config: Mask, rho: float) -> None:
        self.config = config
        self.rho = rho
        self.moments: tuple[Tensor, Tensor] | None = None
        self.n_steps = 0

    def _task_step(self, gradient: Tensor, lr: float) -> Tensor:
        if self.config.mask_optimizer == "sgd":
            return lr * gradient
        # Adam, with (0.9, 0.99): the signal of one batch is noisy, its sign over many is not.
        first, second = self.moments or (torch.zeros_like(gradient), torch.zeros_like(gradient))
        self.n_steps += 1
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient.square()
        self.moments = (first, second)
        corrected = (second / (1 - 0.99**self.n_steps)).sqrt()
        step = first / (1 - 0.9**self.n_steps) / corrected.clamp_min(torch.finfo(corrected.dtype).tiny)
        return lr * step

    def step(self, logits: Tensor, task: Tensor, n_before: int) -> Tensor:
        """New logits [N] from the task alignments [N] = -lambda_1 illegal + lambda_2 legal, after `n_before` steps."""
        c = self.config
        temperature, then = c.temperature_at(n_before), c.temperature_at(n_before + 1)
        gradient = chunkwise(lambda *part: logit_gradients(*part, temperature, c.derivative), task, logits)
        new = logits - self._task_step(gradient, c.mask_lr_at(n_before))
        if c.sparsity == "penalty":
            new = new - sparsity_gradient(logits, temperature, self.rho, c.sparsity_weight, c.derivative)
        else:
            new = project_to_ratio(new, then, self.rho)
        return new.to(torch.bfloat16).to(logits) if c.precision == "bfloat16" else new


def side_weights(config: Mask, n_images: Mapping[str, int]) -> dict[str, float]:
    """lambda_1 and lambda_2 of Eq. 5, as shares that add up to 1."""
    if config.lambdas == "equal":
        return {"illegal": config.illegal_weight, "legal": 1 - config.illegal_weight}
    total = sum(n_images[side] for side in SIDES)
    return {side: n_images[side] / total for side in SIDES}


def of_mean_size_1(signal: Tensor) -> Tensor:
    return signal / signal.abs().mean().clamp_min(torch.finfo(torch.float32).tiny)


def micro_batches(batch: Batch, size: int | None, n_sides: int = 1) -> list[tuple[Batch, float]]:
    """A batch of equally many images a side in parts of `size` images, likewise; each with its share of the batch."""
    n = len(batch.latents) // n_sides
    step = n if size is None else min(n, max(1, size // n_sides))
    if step == n:
        return [(batch, 1.0)]
    split = [tensor.unflatten(0, (n_sides, n)).split(step, 1) for tensor in batch]
    parts = [Batch(*(part.flatten(0, 1) for part in parts)) for parts in zip(*split, strict=True)]
    return [(part, len(part.latents) / (n_sides * n)) for part in parts]


class MaskLearner:
    """The state of Algorithm 1 and its two moves, `user_step` and `mask_step`."""

    def __init__(
        self,
        unet: torch.nn.Module,
        schedule: NoiseSchedule,
        data: Mapping[str, LatentSet],
        finetuned: Mapping[tuple[str, ...], Mapping[str, Tensor]],
        config: Mask,
        rho: float,
        generator: torch.Generator,
        compute: Compute = PLAIN,
    ) -> None:
        """`finetuned` holds theta_ft by the sides its user trained on: one entry, or one a side."""
        check_freeze_ratio(rho)
        if config.user_lr is None:
            raise FreezeAsGuardError("mask.user_lr is null; give the rate of the user who is simulated")
        self.user_lr = config.user_lr
        expected = [SIDES] if config.users == "joint" else [(side,) for side in SIDES]
        if sorted(finetuned) != sorted(expected):
            found = ", ".join("+".join(sides) for sides in sorted(finetuned)) or "none"
            raise FreezeAsGuardError(
                f"mask.users is {config.users}, but the fine-tuned start models are: {found}; run `dvc repro relearn`"
            )
        self.unet, self.schedule, self.data, self.config = unet, schedule, data, config
        self.rho, self.generator = rho, generator
        self.parameters: dict[str, Any] = named_tensors(unet)
        self.names = tuple(sorted(self.parameters))
        self.shapes = {name: tuple(self.parameters[name].shape) for name in self.names}
        self.n_units = {name: n_units(shape, config.granularity) for name, shape in self.shapes.items()}
        self.compute = compute
        self.device = next(iter(self.parameters.values())).device
        configure(self.compute, self.device.type)
        prepare(unet, self.compute)
        where = units_device(config.granularity, self.device)
        self.logits = initial_logits(sum(self.n_units.values()), config, rho, generator, where)
        self.initial_logits = self.logits.cpu().clone()
        self.temperature = config.temperature_at(0)
        self.optimizer = MaskOptimizer(config, rho)
        self.history = MaskHistory()
        self.weights = side_weights(config, {side: len(data[side]) for side in SIDES})
        self._path_position = float(torch.rand((), generator=generator)) if config.signal != "local" else 0.0
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
            parameter.grad = None
        self.users = self._start_users(expected, finetuned)
        self._awake = {"weights": self.users[0], "moments": self.users[0]}
        self._wear(self.users[0])  # frees theta_pre: mixed and delta hold all there is to know

    def _start_users(
        self, expected: Sequence[tuple[str, ...]], finetuned: Mapping[tuple[str, ...], Mapping[str, Tensor]]
    ) -> list[SimulatedUser]:
        dtype = torch.bfloat16 if self.config.precision == "bfloat16" else torch.float32
        pretrained, mask = {name: p.detach() for name, p in self.parameters.items()}, self.by_name(self.mask)
        users = []
        for sides in expected:
            if rests := bool(users) and self.compute.users_on_host:
                pretrained = {name: tensor.cpu() for name, tensor in pretrained.items()}
            user = SimulatedUser.start(sides, pretrained, finetuned[sides], mask, dtype)
            if rests and self.device.type == "cuda":
                user.pin()
            if self.compute.users_on_host and self.config.user_optimizer == "adamw":
                user.start_moments()
            users.append(user)
        return users

    @property
    def mask(self) -> Tensor:
        return soft_mask(self.logits, self.temperature)

    def by_name(self, values: Tensor) -> dict[str, Any]:
        """One value a unit [N] -> what multiplies each tensor: a number, or a view that broadcasts (rows, weights)."""
        if self.config.granularity == "tensor":
            return dict(zip(self.names, values.tolist(), strict=True))
        parts = split_units(values.float(), self.shapes, self.config.granularity)
        return {n: spread_over_weights(part, self.shapes[n], self.config.granularity) for n, part in parts.items()}

    def _exactly(self, function: Callable[..., Tensor], *masks: Tensor) -> dict[str, Any]:
        """`by_name` of a function of masks [N] that is computed in float64."""
        if self.config.granularity == "tensor":
            return self.by_name(function(*(mask.double() for mask in masks)))
        return self.by_name(chunkwise(lambda *parts: function(*(p.double() for p in parts)).float(), *masks))

    def _draw(self, sides: Sequence[str], n: int, like: Batch | None = None) -> Batch:
        """n images a side."""
        sets = [self.data[side] for side in sides]
        return draw_batch(sets, n, self.schedule, self.generator, self.device, like=like)

    def _wake(self, user: SimulatedUser, what: str) -> None:
        """The user's weights, or their moments, onto the device; another's go to the host, where one rests there."""
        other, self._awake[what] = self._awake[what], user
        if self.compute.users_on_host and other is not user:
            exchange(*([u.mixed, u.delta] if what == "weights" else u.moments for u in (other, user)))

    def _wear(self, user: SimulatedUser) -> None:
        self._wake(user, "weights")
        for name, parameter in self.parameters.items():
            parameter.data = user.mixed[name]

    @contextmanager
    def _at(self, user: SimulatedUser, point: float | None) -> Iterator[None]:
        """The UNet wears the user's mixed weights, or those at the point a of the path; at a = 1 theta_pre.

        The point is the mask m' = a, and so a theta_pre + (1 - a) theta_ft; on the user's path m' = m + a (1 - m).
        mixed + (m' - m) delta are its weights, so no third copy of them is needed; on leaving they go back.
        """
        self._wear(user)
        if point is None:
            yield
            return

        def there(m: Tensor) -> Tensor:
            return point - m if self.config.signal != "user_path" else point * (1 - m)

        user.move_mask(self.names, list(self._exactly(there, self.mask).values()))
        yield
        user.move_mask(self.names, list(self._exactly(lambda m: -there(m), self.mask).values()))

    def _losses(self, batch: Batch, n_sides: int = 1) -> Iterator[Tensor]:
        """Each micro-batch's part of the sides' mean losses [n_sides]; they add up to the batch's."""
        for part, share in micro_batches(batch, self.compute.micro_batch_size, n_sides):
            with autocast(self.compute, self.device.type):
                losses = denoising_loss(self.unet, self.schedule, *part)
            yield losses.view(n_sides, -1).mean(1) * share

    def user_step(self, user: SimulatedUser) -> float:
        """Lower level: the user descends on its sides' losses (Eq. 7), through Eq. 9 and 10."""
        trainable = self.by_name(1 - self.mask)
        self._wear(user)
        self._wake(user, "moments")
        user.n_steps += 1
        move, lr = (user.adamw_update if self.config.user_optimizer == "adamw" else user.user_update), self.user_lr

        def update(names: list[str], gradients: list[Tensor]) -> None:
            move(names, gradients, [trainable[n] for n in names], lr)

        batch = self._draw(user.sides, max(1, self.config.batch_size // 2))
        n_parts = len(micro_batches(batch, self.compute.micro_batch_size, len(user.sides)))
        total = 0.0
        for i, losses in enumerate(self._losses(batch, len(user.sides)), 1):
            loss = losses.sum() if self.config.lower_loss == "sum" else losses.mean()
            # AdamW wants the whole batch's gradient: until the last part comes, autograd sums them in .grad.
            with GradientStream(self.parameters, update) if i == n_parts else nullcontext():
                loss.backward()
            total += float(loss.detach())
        return finite_loss(total, "the simulated user", f"step {user.n_steps}", USER_REMEDY)

    def side_alignments(
        self, side: str, batch: Batch, points: Sequence[float | None] = (None,)
    ) -> tuple[Tensor, float]:
        """<dL_side/dtheta, delta> over each unit [N], at the user who trains on that side; and the loss.

        The means of both over `points`: the point a of the path, or None for the mixed weights.
        """
        user = next(user for user in self.users if side in user.sides)
        alignments = torch.zeros_like(self.logits)
        parts = split_units(alignments, self.shapes, self.config.granularity)
        losses: list[float] = []

        def align(names: list[str], gradients: list[Tensor]) -> None:
            found = user.alignments(names, gradients, self.config.granularity).float().to(alignments.device)
            for name, part in zip(names, found.split([self.n_units[n] for n in names]), strict=True):
                parts[name] += part / len(points)

        for point in points:
            with self._at(user, point), GradientStream(self.parameters, align) as stream:
                total = 0.0
                for (loss,) in self._losses(batch):
                    loss.backward()
                    stream.flush()  # alignments are linear in the gradient: those of the parts add up
                    total += float(loss.detach())
            when = f"mask step {len(self.history.loss[side])}"
            losses.append(finite_loss(total, f"the {side} side", when, USER_REMEDY))
        if not alignments.isfinite().all():
            raise FreezeAsGuardError(f"the {side} side's signals are not finite; {USER_REMEDY}")
        return alignments, sum(losses) / len(points)

    def path_points(self) -> list[float | None]:
        """Where the next mask step takes its gradient: even over the path, within a step and over many."""
        if self.config.signal == "local":
            return [None]
        points: list[float | None] = []
        for _ in range(self.config.path_points):
            points.append(self._path_position)
            self._path_position = (self._path_position + GOLDEN) % 1
        return points

    def path_sum(self, alignments: Tensor) -> float:
        """The alignments [N] with the whole way from one end of the path to the other, added up."""
        along = self.config.signal == "user_path"
        parts = zip(self.mask.split(CHUNK), alignments.split(CHUNK), strict=True)
        return sum(float(((1 - m if along else 1) * a).double().sum()) for m, a in parts)

    def task_signals(self) -> dict[str, Tensor]:
        """The alignments [N] of each side on fresh batches, on one scale where `normalise` says so."""
        n = self.config.mask_batch_size or max(1, self.config.batch_size // 2)
        points = self.path_points()
        signals: dict[str, Tensor] = {}
        batch: Batch | None = None
        for side in SIDES:
            batch = self._draw([side], n, like=batch if self.config.common_noise else None)
            alignments, loss = self.side_alignments(side, batch, points)
            self.history.record(side, alignments, loss, self.path_sum(alignments))
            signals[side] = self._scaled(side, alignments)
        return signals

    def _scaled(self, side: str, alignments: Tensor) -> Tensor:
        """The side's signal [N] as the mask step takes it (see `Mask.normalise`); `alignments` are recorded already.

        `sum`: after k steps the signals taken add up to k S_k / mean|S_k|, S_k the sum of all alignments so far.
        Scaled step by step, those of the path's end near the user, small and noisy, would count as much as any other.
        """
        if self.config.normalise == "never":
            return alignments
        if self.config.normalise == "step":
            return of_mean_size_1(alignments)
        total, k = self.history.signal_sum[side].to(alignments), len(self.history.loss[side])
        now = k * of_mean_size_1(total)
        return now - (k - 1) * of_mean_size_1(total - alignments) if k > 1 else now

    def mask_step(self) -> None:
        """Upper level: descend on -lambda_1 L_illegal + lambda_2 L_legal (Eq. 5) and the sparsity term."""
        signals = self.task_signals()
        task = signals["legal"].mul_(self.weights["legal"]).sub_(signals["illegal"].mul_(self.weights["illegal"]))
        before, n_before = self.mask, len(self.history.mean_mask)
        self.logits = self.optimizer.step(self.logits, task, n_before)
        self.temperature = self.config.temperature_at(n_before + 1)
        if not self.logits.isfinite().all():
            raise FreezeAsGuardError("the mask's logits are not finite; lower mask.mask_lr, or raise mask.temperature")
        after = self.mask
        change = list(self._exactly(torch.sub, after, before).values())
        for user in sorted(self.users, key=lambda user: user is not self._awake["weights"]):
            self._wear(user)
            user.move_mask(self.names, change)
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

    def path_check(self, side: str, points: int = 4) -> dict[str, float]:
        """What the units' path signals add up to, by the midpoint rule, beside the losses at the path's two ends.

        All on one batch, at the same timesteps and noise. `loss_finetuned` is that of theta_ft, or of mixed.
        """
        batch = self._draw([side], self.config.mask_batch_size or max(1, self.config.batch_size // 2))
        alignments, _ = self.side_alignments(side, batch, [(i + 0.5) / points for i in range(points)])
        user = next(user for user in self.users if side in user.sides)
        ends = []
        for end in (1.0, 0.0):
            with self._at(user, end), torch.no_grad():
                ends.append(sum(float(loss) for (loss,) in self._losses(batch)))
        return {"path_sum": self.path_sum(alignments), "loss_pretrained": ends[0], "loss_finetuned": ends[1]}

    def state(self) -> dict[str, Any]:
        """All that the next round depends on, and what the rounds before left to tell."""
        return {
            "logits": self.logits,
            "initial_logits": self.initial_logits,
            "moments": self.optimizer.moments,
            "mask_steps": self.optimizer.n_steps,
            "users": [(user.n_steps, user.mixed, user.delta, *user.moments) for user in self.users],
            "generator": self.generator.get_state(),
            "path_position": self._path_position,
            "history": vars(self.history),
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state` on the CPU."""
        where = self.logits.device
        self.logits, self.initial_logits = state["logits"].to(where), state["initial_logits"]
        moments = state["moments"]
        self.optimizer.moments = moments and (moments[0].to(where), moments[1].to(where))
        self.optimizer.n_steps, self._path_position = state["mask_steps"], state["path_position"]
        for user, (n_steps, *saved) in zip(self.users, state["users"], strict=True):
            user.n_steps = n_steps
            for own, tensors in zip((user.mixed, user.delta, *user.moments), saved, strict=True):
                for name, tensor in tensors.items():
                    own.setdefault(name, torch.empty_like(user.mixed[name])).copy_(tensor)
        self.generator.set_state(state["generator"])
        self.history = MaskHistory(**state["history"])
        self.temperature = self.config.temperature_at(len(self.history.mean_mask))

    def learn(
        self,
        description: str = "learning the mask",
        checkpoint: Checkpoint | None = None,
        meter: Meter | None = None,
    ) -> LearnedMask:
        """Algorithm 1. The learner uses the UNet up: afterwards it holds a user's mixed weights.

        A third copy, kept only to put theta_pre back, would cost what Eq. 8-10 save; load the model again. A run that
        was killed goes on from its last checkpoint and ends bit for bit as if it had not been.
        """
        if checkpoint and (state := checkpoint.load()):
            self.restore(state)
            del state  # tens of GB at scale
        done, n = len(self.history.mean_mask), self.config.mask_steps
        if meter:
            meter.resumed_at = done
        bar = tqdm(range(done, n), initial=done, total=n, desc=description)
        with between_steps() as is_ending:
            for _ in bar:
                with meter.step() if meter else nullcontext():
                    self._round()
                bar.set_postfix({side: f"{self.history.loss[side][-1]:.3f}" for side in SIDES})
                if checkpoint and (is_ending() or checkpoint.is_due(self.config.checkpoint_minutes)):
                    checkpoint.save(self.state())
                if is_ending():
                    break
        if self.config.signal != "local":
            self.history.path_check = {side: self.path_check(side) for side in SIDES}
        return self._learned(self.logits)

    def one_shot(self) -> LearnedMask:
        """A control: rank by lambda_1 |illegal signal| - lambda_2 |legal signal| of one mask step, and stop.

        No user re-adapts and no round follows. `logits` are those differences, not logits of a soft mask.
        """
        signals = self.task_signals()
        return self._learned(
            self.weights["illegal"] * signals["illegal"].abs() - self.weights["legal"] * signals["legal"].abs()
        )

    def _learned(self, logits: Tensor) -> LearnedMask:
        return LearnedMask(self.shapes, self.config.granularity, logits.cpu(), self.initial_logits, self.history)


def learn_without_signal(
    shapes: Mapping[str, Sequence[int]],
    config: Mask,
    rho: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> LearnedMask:
    """The same run with its task signal zeroed: initial logits and sparsity force alone.

    A learned mask that equals this one learned nothing. No network is needed, so it costs nothing.
    """
    sizes = {name: tuple(shape) for name, shape in shapes.items()}
    n, where = sum(n_units(s, config.granularity) for s in sizes.values()), units_device(config.granularity, device)
    start = initial_logits(n, config, rho, generator, where)
    optimizer = MaskOptimizer(config, rho)
    logits = start
    for n_before in range(config.mask_steps):
        logits = optimizer.step(logits, torch.zeros_like(start), n_before)
    return LearnedMask(sizes, config.granularity, logits.cpu(), start.cpu(), MaskHistory())
