from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from conftest import CHANNELS, SIZE, TEXT, TOKENS, ToyDenoiser
from freezeasguard import bilevel
from freezeasguard.bilevel import (
    GradientStream,
    LearnedMask,
    MaskConfig,
    MaskLearner,
    MaskOptimizer,
    SimulatedUser,
    initial_logits,
    learn_without_signal,
    side_weights,
)
from freezeasguard.config import MASK_PRESETS
from freezeasguard.data.latents import SIDES, LatentSet
from freezeasguard.diffusion import NoiseSchedule, denoising_loss, draw_noise
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.mask import hard_mask, logit_gradients, overlap

Weights = dict[str, Tensor]


def mask_config(preset: str, **changes: Any) -> MaskConfig:
    settings = dict(mask_steps=3, batch_size=4, temperature=0.2, **MASK_PRESETS[preset])
    return MaskConfig(**{**settings, **changes})


def sides_of(users: str) -> list[tuple[str, ...]]:
    return [SIDES] if users == "joint" else [(side,) for side in SIDES]


def weights_of(network: torch.nn.Module) -> Weights:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def moved(pretrained: Mapping[str, Tensor], seed: int, by: float = 0.3) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: p + by * torch.randn(p.shape, generator=generator).to(p) for name, p in pretrained.items()}


def toy_learner(
    config: MaskConfig,
    schedule: NoiseSchedule,
    data: Mapping[str, LatentSet],
    *,
    seed: int = 0,
    rho: float = 0.3,
    dtype: torch.dtype = torch.float32,
) -> MaskLearner:
    toy = ToyDenoiser(1, dtype)
    finetuned = {sides: moved(weights_of(toy), 10 + i) for i, sides in enumerate(sides_of(config.users))}
    return MaskLearner(toy, schedule, data, finetuned, config, rho, torch.Generator().manual_seed(seed))


class Tape:
    """Algorithm 1 with m pre + (1 - m) ft on autograd's tape: theta_ft itself is kept, in float64."""

    def __init__(self, learner: MaskLearner, finetuned: list[Weights]) -> None:
        self.learner = learner
        self.toy = ToyDenoiser(1, torch.float64)
        self.pretrained = weights_of(self.toy)
        self.finetuned = finetuned
        self.generator = torch.Generator()

    def follow(self) -> None:
        """Draw from here on what the learner is about to draw."""
        self.generator.set_state(self.learner.generator.get_state())

    def losses(self, user: int, sides: tuple[str, ...], logits: Tensor) -> list[Tensor]:
        """The mean loss of each side at the user's mixed weights."""
        m = torch.sigmoid(logits / self.learner.config.temperature)
        mixed = {
            name: m[i] * self.pretrained[name] + (1 - m[i]) * self.finetuned[user][name]
            for i, name in enumerate(self.learner.names)
        }
        half = self.learner.config.batch_size // 2
        batches = [self.learner.data[side].sample(half, self.generator) for side in sides]
        latents, text = (torch.cat(parts) for parts in zip(*batches, strict=True))
        timesteps, noise = draw_noise(latents, self.learner.schedule.n_timesteps, self.generator)

        def network(*inputs: Tensor) -> Any:
            return functional_call(self.toy, mixed, inputs)

        losses = denoising_loss(network, self.learner.schedule, latents, text, timesteps, noise)  # type: ignore[arg-type]
        return [part.mean() for part in losses.split(half)]

    def user_step(self, user: int, sides: tuple[str, ...], logits: Tensor) -> float:
        """Plain gradient descent on theta_ft."""
        leaves = self.finetuned[user] = {n: t.detach().requires_grad_(True) for n, t in self.finetuned[user].items()}
        losses = self.losses(user, sides, logits)
        loss = sum(losses) if self.learner.config.lower_loss == "sum" else sum(losses) / len(losses)
        assert isinstance(loss, Tensor)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        lr = self.learner.config.user_lr
        self.finetuned[user] = {
            name: (leaf - lr * g).detach() for (name, leaf), g in zip(leaves.items(), gradients, strict=True)
        }
        return float(loss.detach())

    def mask_step(self, logits: Tensor) -> Tensor:
        """Plain gradient descent on the logits: eta_1 on Eq. 5, c on Eq. 6."""
        config = self.learner.config
        logits = logits.detach().requires_grad_(True)
        task = torch.zeros((), dtype=torch.float64)
        shares = side_weights(config, {side: len(self.learner.data[side]) for side in SIDES})
        for side, sign in (("illegal", -1), ("legal", 1)):
            user = next(i for i, sides in enumerate(sides_of(config.users)) if side in sides)
            task = task + sign * shares[side] * self.losses(user, (side,), logits)[0]
        mean = torch.sigmoid(logits / config.temperature).mean()
        sparsity = config.sparsity_weight * (mean - self.learner.rho) ** 2
        (gradient,) = torch.autograd.grad(config.mask_lr * task + sparsity, logits)
        return (logits - gradient).detach()

    def check_invariant(self, atol: float = 1e-6) -> None:
        m = self.learner.mask.double()
        for user, finetuned in zip(self.learner.users, self.finetuned, strict=True):
            for i, name in enumerate(self.learner.names):
                before, after = self.pretrained[name], finetuned[name]
                torch.testing.assert_close(user.delta[name], before - after, rtol=0, atol=atol)
                torch.testing.assert_close(user.mixed[name], m[i] * before + (1 - m[i]) * after, rtol=0, atol=atol)


@pytest.mark.parametrize("lower_loss", ["sum", "mixed"])
@pytest.mark.parametrize("lambdas", ["equal", "proportional"])
@pytest.mark.parametrize("users", ["joint", "per_side"])
def test_fifty_steps_keep_the_invariant_and_follow_autograd(
    users: str, lambdas: str, lower_loss: str, schedule: NoiseSchedule, latent_sets: dict[str, LatentSet]
) -> None:
    config = mask_config(
        "official",
        users=users,
        lambdas=lambdas,
        lower_loss=lower_loss,
        precision="float32",
        user_lr=0.02,
        mask_lr=0.5,
        sparsity_weight=0.3,
    )
    learner = toy_learner(config, schedule, latent_sets, dtype=torch.float64)
    pretrained = weights_of(ToyDenoiser(1, torch.float64))
    start = [moved(pretrained, 10 + i) for i in range(len(learner.users))]
    tape = Tape(learner, [dict(weights) for weights in start])
    tape.check_invariant(atol=1e-12)
    choices = torch.randint(3, (50,), generator=torch.Generator().manual_seed(7)).tolist()
    assert set(choices) == {0, 1, 2}
    for choice in choices:
        tape.follow()
        logits = learner.logits.double()
        if choice == 0:
            expected = tape.mask_step(logits)
            learner.mask_step()
            torch.testing.assert_close(learner.logits.double(), expected, rtol=0, atol=2e-6)
        else:
            for i, user in enumerate(learner.users):
                expected_loss = tape.user_step(i, user.sides, logits)
                assert learner.user_step(user) == pytest.approx(expected_loss, abs=1e-5)
        tape.check_invariant()
    # The steps went somewhere: an idle learner would keep the invariant too.
    assert (learner.logits - learner.initial_logits).abs().min() > 1e-3
    for weights, finetuned in zip(start, tape.finetuned, strict=True):
        assert max((weights[n] - finetuned[n]).abs().max() for n in weights) > 0.05


@pytest.mark.parametrize("users", ["joint", "per_side"])
def test_hand_gradient_of_the_mask_is_autograds(
    users: str, schedule: NoiseSchedule, latent_sets: dict[str, LatentSet]
) -> None:
    config = mask_config("freezeasguard", users=users)
    learner = toy_learner(config, schedule, latent_sets, dtype=torch.float64)
    pretrained = weights_of(ToyDenoiser(1, torch.float64))
    tape = Tape(learner, [moved(pretrained, 10 + i) for i in range(len(learner.users))])
    for side in SIDES:
        tape.follow()
        user = next(i for i, sides in enumerate(sides_of(users)) if side in sides)
        logits = learner.logits.double().requires_grad_(True)
        (loss,) = tape.losses(user, (side,), logits)
        (expected,) = torch.autograd.grad(loss, logits)
        alignments, found_loss = learner.side_alignments(side)
        found = logit_gradients(alignments, learner.logits, config.temperature).double()
        assert found_loss == pytest.approx(float(loss.detach()))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)
        assert expected.abs().min() > 0
        printed = logit_gradients(alignments, learner.logits, config.temperature, "as_printed").double()
        assert not torch.allclose(printed, expected, rtol=1e-2)


def test_user_update_is_equations_9_and_10() -> None:
    before, after, m, lr = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 1.0]), 0.25, 0.1
    user = SimulatedUser.start(SIDES, {"w": before}, {"w": after}, {"w": m})
    assert user.delta["w"].tolist() == [1, 3] and user.mixed["w"].tolist() == [1.25, 1.75]
    user.user_update(["w"], [torch.tensor([1.0, -2.0])], [1 - m], lr)
    torch.testing.assert_close(user.delta["w"], torch.tensor([1 + 0.075, 3 - 0.15]))
    torch.testing.assert_close(user.mixed["w"], torch.tensor([1.25 - 0.05625, 1.75 + 0.1125]))


def test_a_user_starts_from_copies_and_checks_the_fine_tuned_weights() -> None:
    pretrained = {"a": torch.ones(2), "b": torch.ones(3)}
    user = SimulatedUser.start(SIDES, pretrained, {"a": torch.zeros(2)}, {"a": 0.5, "b": 0.5})
    assert user.delta["b"].tolist() == [0, 0, 0] and user.mixed["b"].tolist() == [1, 1, 1]
    user.mixed["b"].zero_()
    assert pretrained["b"].tolist() == [1, 1, 1]
    with pytest.raises(FreezeAsGuardError, match="lacks, e.g. c"):
        SimulatedUser.start(SIDES, pretrained, {"c": torch.zeros(2)}, {"a": 0.5, "b": 0.5})
    with pytest.raises(FreezeAsGuardError, match=r"fine-tuned a is \(3,\), the model's \(2,\)"):
        SimulatedUser.start(SIDES, pretrained, {"a": torch.zeros(3)}, {"a": 0.5, "b": 0.5})


# --- the gradient stream --------------------------------------------------------------------------


def unet_loss(unet: torch.nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, CHANNELS, SIZE, SIZE, generator=generator)
    text = torch.randn(2, TOKENS, TEXT, generator=generator)
    return unet(noise, torch.tensor([3, 700]), text).sample.square().mean()


@pytest.mark.parametrize("bucket_bytes", [1, 4096, 2**30])
def test_streamed_gradients_are_autograds_and_few_at_once(tiny_unet: Any, bucket_bytes: int) -> None:
    parameters = dict(tiny_unet.named_parameters())
    assert len(parameters) == 686
    expected = dict(zip(parameters, torch.autograd.grad(unet_loss(tiny_unet), parameters.values()), strict=True))
    found: Weights = {}

    def consume(names: list[str], gradients: list[Tensor]) -> None:
        assert not torch.is_grad_enabled()
        assert not found.keys() & set(names)
        found.update(zip(names, gradients, strict=True))

    with GradientStream(parameters, consume, bucket_bytes) as stream:
        unet_loss(tiny_unet).backward()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
    assert all(p.grad is None for p in parameters.values())
    sizes = [g.nbytes for g in expected.values()]
    assert max(sizes) <= stream.peak_bytes <= min(bucket_bytes + max(sizes), sum(sizes))
    # The hooks are gone: the next backward pass fills .grad as ever.
    unet_loss(tiny_unet).backward()
    assert all(p.grad is not None for p in parameters.values())


def test_an_interrupted_stream_removes_its_hooks_and_consumes_no_half_pass(toy: ToyDenoiser) -> None:
    consumed: list[str] = []
    with pytest.raises(RuntimeError, match="interrupted"):
        with GradientStream(dict(toy.named_parameters()), lambda names, _: consumed.extend(names)):
            unet_loss(toy).backward()
            raise RuntimeError("interrupted")
    assert not consumed
    unet_loss(toy).backward()
    assert toy.weight.grad is not None and not consumed


@pytest.mark.parametrize("preset", sorted(MASK_PRESETS))
def test_results_do_not_depend_on_the_bucket(
    preset: str, schedule: NoiseSchedule, latent_sets: dict[str, LatentSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> MaskLearner:
        learner = toy_learner(mask_config(preset, user_lr=0.01), schedule, latent_sets)
        learner.learn()
        return learner

    whole = run()
    monkeypatch.setattr(bilevel, "BUCKET_BYTES", 1)
    monkeypatch.setattr(bilevel, "GradientStream", functools.partial(GradientStream, bucket_bytes=1))
    single = run()
    assert torch.equal(whole.logits, single.logits)
    for a, b in zip(whole.users, single.users, strict=True):
        assert all(torch.equal(a.mixed[n], b.mixed[n]) and torch.equal(a.delta[n], b.delta[n]) for n in whole.names)


def test_steps_on_a_unet_leave_no_gradient_behind(
    tiny_unet: Any, schedule: NoiseSchedule, latent_sets: dict[str, LatentSet]
) -> None:
    before = weights_of(tiny_unet)
    finetuned = {(side,): moved(before, i, by=0.01) for i, side in enumerate(SIDES)}
    config = mask_config("freezeasguard", mask_steps=1)
    learner = MaskLearner(tiny_unet, schedule, latent_sets, finetuned, config, 0.3, torch.Generator().manual_seed(0))
    learner.user_step(learner.users[0])
    learner.mask_step()
    assert all(p.grad is None for p in tiny_unet.parameters())
    assert not all(torch.equal(p, before[n]) for n, p in tiny_unet.named_parameters())
    learned = learner.learn()
    assert len(learned.frozen(0.3)) == 206


# --- users, presets, seeds ------------------------------------------------------------------------


@pytest.mark.parametrize("users", ["joint", "per_side"])
def test_start_models_of_other_users_are_refused(
    users: str, schedule: NoiseSchedule, latent_sets: dict[str, LatentSet], toy: ToyDenoiser
) -> None:
    other = {"joint": "per_side", "per_side": "joint"}[users]
    for sides in (sides_of(other), [], [*sides_of(users), ("other",)]):
        with pytest.raises(FreezeAsGuardError, match=f"set relearn.users to {users}"):
            MaskLearner(
                toy,
                schedule,
                latent_sets,
                {s: weights_of(toy) for s in sides},
                mask_config("freezeasguard", users=users),
                0.3,
                torch.Generator(),
            )


def test_unknown_initial_logits_are_refused() -> None:
    with pytest.raises(FreezeAsGuardError, match="mask.logits_init is 'zero'"):
        initial_logits(5, mask_config("paper", logits_init="zero"), 0.3, torch.Generator())


def test_initial_masks_of_the_three_readings() -> None:
    def start(preset: str) -> Tensor:
        logits = initial_logits(686, mask_config(preset), 0.3, torch.Generator().manual_seed(0))
        assert len(logits.unique()) > 50
        return torch.sigmoid(logits / 0.2)

    assert start("paper").max() < 0.0068
    assert 0.5 <= start("official").min() and start("official").max() < 0.9934
    ours = start("freezeasguard")
    assert float(ours.mean()) == pytest.approx(0.3, abs=1e-6)
    assert (ours - 0.3).abs().max() < 0.02


@pytest.mark.parametrize("preset", sorted(MASK_PRESETS))
def test_every_preset_repeats_by_seed_and_keeps_no_third_copy(
    preset: str, schedule: NoiseSchedule, latent_sets: dict[str, LatentSet]
) -> None:
    def learn(seed: int) -> LearnedMask:
        learner = toy_learner(mask_config(preset, user_lr=0.01), schedule, latent_sets, seed=seed)
        for stage in ("before", "after"):
            learned = learner.learn() if stage == "after" else None
            for name, parameter in learner.unet.named_parameters():
                # the UNet's own storage is a user's: theta_pre is held nowhere
                assert parameter.data_ptr() in {user.mixed[name].data_ptr() for user in learner.users}
                assert parameter.grad is None
        assert learned is not None
        return learned

    learned, again, other = learn(0), learn(0), learn(1)
    assert torch.equal(learned.logits, again.logits) and learned.frozen(0.3) == again.frozen(0.3)
    assert learned.history.loss == again.history.loss
    assert not torch.equal(learned.logits, other.logits)
    assert not torch.equal(learned.logits, learned.initial_logits)
    assert all(len(learned.history.loss[side]) == 3 for side in SIDES)
    config = mask_config(preset)
    assert len(learned.history.user_loss) == 3 * config.user_steps * len(sides_of(config.users))


def test_order_decides_who_moves_first(
    schedule: NoiseSchedule, latent_sets: dict[str, LatentSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    for order, expected in (("user_first", "uumuum"), ("mask_first", "muumuu")):
        config = mask_config("paper", order=order, user_steps=2, mask_steps=2)
        learner = toy_learner(config, schedule, latent_sets)
        moves: list[str] = []
        user_step, mask_step = learner.user_step, learner.mask_step
        monkeypatch.setattr(learner, "user_step", lambda u, f=user_step, m=moves: (m.append("u"), f(u))[1])
        monkeypatch.setattr(learner, "mask_step", lambda f=mask_step, m=moves: (m.append("m"), f())[1])
        learner.learn()
        assert "".join(moves) == expected


def test_bfloat16_preset_keeps_logits_and_delta_in_half(
    schedule: NoiseSchedule, latent_sets: dict[str, LatentSet]
) -> None:
    learner = toy_learner(mask_config("official", user_lr=0.05), schedule, latent_sets)
    for _ in range(2):
        learner._round()
        assert torch.equal(learner.logits, learner.logits.bfloat16().float())
        (user,) = learner.users
        assert {t.dtype for t in user.delta.values()} == {torch.bfloat16}
        assert {t.dtype for t in user.mixed.values()} == {torch.float32}
        assert all(torch.isfinite(t).all() for t in (*user.mixed.values(), *user.delta.values()))
    # Small updates are lost, as they are in the authors' code.
    before = user.delta["weight"].clone()
    user.user_update(["weight"], [torch.full((CHANNELS, CHANNELS), 1e-3)], [1.0], 1e-5)
    assert torch.equal(user.delta["weight"], before)


@pytest.mark.parametrize(("sparsity", "users"), [("projection", "per_side"), ("projection", "joint")])
def test_projection_holds_the_mean_at_rho(
    sparsity: str, users: str, schedule: NoiseSchedule, latent_sets: dict[str, LatentSet]
) -> None:
    config = mask_config("freezeasguard", users=users, sparsity=sparsity, mask_lr=0.3, mask_steps=6)
    learned = toy_learner(config, schedule, latent_sets, rho=0.4).learn()
    assert learned.history.mean_mask == pytest.approx([0.4] * 6, abs=1e-5)
    assert (torch.sigmoid(learned.logits / 0.2) - 0.4).abs().max() > 0.1


def test_lambdas_are_shares_of_the_data_or_equal() -> None:
    counts = {"illegal": 30, "legal": 10}
    assert side_weights(mask_config("paper"), counts) == {"illegal": 0.75, "legal": 0.25}
    assert side_weights(mask_config("official"), counts) == {"illegal": 0.5, "legal": 0.5}


# --- does the signal drive the mask? --------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_without_a_signal_our_preset_stays_at_its_start(seed: int) -> None:
    names = [f"tensor.{i}" for i in range(60)]
    config = mask_config("freezeasguard", mask_steps=60)
    learned = learn_without_signal(names, config, 0.3, torch.Generator().manual_seed(seed))
    assert learned.frozen(0.3) == learned.initially_frozen(0.3)
    assert len(learned.frozen(0.3)) == 18
    other = learn_without_signal(names, config, 0.3, torch.Generator().manual_seed(seed + 100))
    assert other.frozen(0.3) != learned.frozen(0.3)


def test_without_a_signal_means_the_learners_own_run(
    schedule: NoiseSchedule, latent_sets: dict[str, LatentSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Same start and same sparsity force as a learner whose alignments are all zero.
    config = mask_config("paper", sparsity_weight=20.0)
    learner = toy_learner(config, schedule, latent_sets, seed=4)
    monkeypatch.setattr(learner, "side_alignments", lambda side: (torch.zeros(len(learner.names)), 0.0))
    expected = learner.learn()
    found = learn_without_signal(learner.names, config, 0.3, torch.Generator().manual_seed(4))
    assert torch.equal(found.initial_logits, expected.initial_logits)
    assert torch.equal(found.logits, expected.logits)
    assert not torch.equal(found.logits, found.initial_logits)


def penalised(size: float) -> tuple[float, float]:
    """The official preset on 200 tensors whose signal is -size on 60 and +size on the others.

    Returns overlaps of the mask with the top of its start, and with the 60.
    """
    config, rho = mask_config("official"), 0.3
    generator = torch.Generator().manual_seed(0)
    names = [f"t{i:03}" for i in range(200)]
    start = initial_logits(200, config, rho, generator)
    chosen = torch.randperm(200, generator=generator)[:60]
    task = torch.full((200,), size)
    task[chosen] *= -1
    optimizer, logits = MaskOptimizer(config, rho), start
    for _ in range(50):
        logits = optimizer.step(logits, task)
    frozen = hard_mask(logits, names, rho)
    return overlap(frozen, hard_mask(start, names, rho)), overlap(frozen, [names[i] for i in chosen.tolist()])


def test_official_penalty_drowns_a_weak_signal_and_yields_to_a_strong_one() -> None:
    # METHOD, section 3, "known hazard".
    nothing, weak, strong = penalised(0), penalised(1e-4), penalised(1e3)
    assert nothing[0] == 1 and nothing[1] < 0.5
    assert weak == nothing
    assert strong[1] == 1 and strong[0] < 0.5


class PlantedDenoiser(torch.nn.Module):
    """Twelve tensors: four that only illegal text reaches, four that only legal text reaches, four idle."""

    def __init__(self, groups: dict[str, list[int]]) -> None:
        super().__init__()
        self.groups = groups
        self.layers = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(CHANNELS)) for _ in range(12)])

    def names(self, side: str) -> set[str]:
        return {f"layers.{i}" for i in self.groups[side]}

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Any:
        illegal = text[:, :1, 0]
        offset = sum(illegal * self.layers[i] for i in self.groups["illegal"])
        offset = offset + sum((1 - illegal) * self.layers[i] for i in self.groups["legal"])
        offset = offset + sum(0 * self.layers[i] for i in self.groups["idle"])
        return SimpleNamespace(sample=0 * x + offset[:, :, None, None])


@pytest.mark.parametrize("users", ["per_side", "joint"])
@pytest.mark.parametrize("seed", range(3))
def test_our_preset_freezes_what_only_the_illegal_side_needs(seed: int, users: str, schedule: NoiseSchedule) -> None:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(12, generator=generator).tolist()
    network = PlantedDenoiser({"illegal": order[:4], "legal": order[4:8], "idle": order[8:]})
    data = {
        side: LatentSet(
            torch.randn(6, 2, CHANNELS, SIZE, SIZE, generator=generator),
            torch.full((6, TOKENS, TEXT), float(side == "illegal")),
        )
        for side in SIDES
    }
    # The noise has mean 0: a user who reached its optimum brought its tensors from 1 to 0.
    pretrained = weights_of(network)
    finetuned = {
        sides: {n: torch.zeros_like(t) for n, t in pretrained.items() if any(n in network.names(s) for s in sides)}
        for sides in sides_of(users)
    }
    config = mask_config("freezeasguard", mask_steps=30, users=users)
    learner = MaskLearner(network, schedule, data, finetuned, config, 1 / 3, generator)
    learned = learner.learn()
    assert learned.frozen(1 / 3) == network.names("illegal")
    assert not learned.frozen(2 / 3) & network.names("legal")
    assert learned.initially_frozen(1 / 3) != network.names("illegal")
    for side in SIDES:
        signal = dict(zip(learned.names, learned.history.mean_signal(side).tolist(), strict=True))
        size = dict(zip(learned.names, learned.history.mean_size(side).tolist(), strict=True))
        for name in learned.names:
            if name in network.names(side):
                assert 0 < signal[name] <= size[name] * (1 + 1e-6)
            else:
                assert signal[name] == size[name] == 0


def test_settings_of_the_presets_fill_the_config() -> None:
    fields = {f.name for f in dataclasses.fields(MaskConfig)} - {"mask_steps", "batch_size", "temperature"}
    assert all(preset.keys() == fields for preset in MASK_PRESETS.values())
