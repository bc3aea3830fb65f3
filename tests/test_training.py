from __future__ import annotations

import copy
import dataclasses
import multiprocessing
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import CHANNELS, SIZE, TEXT, TOKENS, ToyDenoiser, random_latents
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.batches import draw_batch
from freezeasguard.models.diffusion import NoiseSchedule, denoising_loss
from freezeasguard.models.freezing import freeze
from freezeasguard.models.latents import LatentSet
from freezeasguard.settings.users import Finetuning
from freezeasguard.users import training
from freezeasguard.users.training import (
    Checkpoint,
    changed_tensors,
    finetune,
)

CONFIG = Finetuning(steps=7, batch_size=3, lr=1e-2, checkpoint_steps=2)


def weights_of(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def data() -> LatentSet:
    return random_latents(8, seed=0)


@pytest.fixture
def optimizers(monkeypatch: pytest.MonkeyPatch) -> list[torch.optim.Optimizer]:
    """Every AdamW that the library makes."""
    made: list[torch.optim.Optimizer] = []

    class Spy(torch.optim.AdamW):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    return made


# --- freezing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [2, 3])
def test_exactly_the_unfrozen_tensors_move(
    every: int, tiny_unet: Any, schedule: NoiseSchedule, data: LatentSet, optimizers: list[Any]
) -> None:
    before = weights_of(tiny_unet)
    names = sorted(before)
    frozen = frozenset(names[::every])
    gradients: set[str] = set()
    for name, parameter in tiny_unet.named_parameters():
        parameter.grad = torch.ones_like(parameter)  # left over from an earlier user
        parameter.requires_grad_(True)
        parameter.register_hook(lambda _, name=name: gradients.add(name))
    losses = finetune(
        tiny_unet, schedule, data, CONFIG.model_copy(update=dict(steps=2)), frozen=frozen, generator=generator()
    )
    assert len(losses) == 2
    after = dict(tiny_unet.named_parameters())
    assert {name for name in names if torch.equal(after[name], before[name])} == frozen
    assert gradients == set(names) - frozen
    assert all(p.grad is None for p in after.values())
    (optimizer,) = optimizers
    trained = {id(after[name]) for name in names if name not in frozen}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == trained
    assert {id(p) for p in optimizer.state} == trained
    assert changed_tensors(tiny_unet, before).keys() == set(names) - frozen


def test_frozen_tensors_have_no_gradient_in_the_midst_of_training(
    schedule: NoiseSchedule, data: LatentSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = ToyDenoiser()
    seen: list[set[str]] = []
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters: Any, norm: float) -> Tensor:
        seen.append({name for name, p in toy.named_parameters() if p.grad is not None})
        return clip(parameters, norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    finetune(toy, schedule, data, CONFIG, frozen={"weight", "gain"}, generator=generator())
    assert seen == [set(weights_of(toy)) - {"weight", "gain"}] * CONFIG.steps


def test_freezing_replaces_an_earlier_freeze(toy: ToyDenoiser) -> None:
    freeze(toy, {"weight", "gain"})
    trainable = freeze(toy, {"bias"})
    assert list(trainable) == sorted(weights_of(toy).keys() - {"bias"})
    assert {name for name, p in toy.named_parameters() if not p.requires_grad} == {"bias"}


@pytest.mark.parametrize("idle", ["rho 1", "no steps"])
def test_an_idle_user_trains_nothing(
    idle: str, schedule: NoiseSchedule, data: LatentSet, optimizers: list[Any], tmp_path: Path
) -> None:
    toy = ToyDenoiser()
    before = weights_of(toy)
    checkpoint = Checkpoint(tmp_path / "run.pt", {})
    frozen, config = (set(before), CONFIG) if idle == "rho 1" else (set(), CONFIG.model_copy(update=dict(steps=0)))
    losses = finetune(toy, schedule, data, config, frozen=frozen, generator=generator(), checkpoint=checkpoint)
    assert losses == [] and not optimizers and not checkpoint.path.exists()
    assert changed_tensors(toy, before) == {}


def test_an_unknown_frozen_name_is_refused_before_anything_moves(
    schedule: NoiseSchedule, data: LatentSet, toy: ToyDenoiser
) -> None:
    before = weights_of(toy)
    with pytest.raises(FreezeAsGuardError, match="lacks, e.g. down_blocks.9"):
        finetune(toy, schedule, data, CONFIG, frozen={"gain", "down_blocks.9"}, generator=generator())
    assert changed_tensors(toy, before) == {}


# --- the user's recipe ----------------------------------------------------------------------------


def test_the_optimiser_is_the_papers(schedule: NoiseSchedule, data: LatentSet, optimizers: list[Any]) -> None:
    finetune(ToyDenoiser(), schedule, data, CONFIG, generator=generator())
    (group,) = optimizers[0].param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-2, 1e-2, (0.9, 0.999))
    own = CONFIG.model_copy(update=dict(lr=3e-3, weight_decay=0.2))
    finetune(ToyDenoiser(), schedule, data, own, generator=generator())
    (group,) = optimizers[1].param_groups
    assert (group["lr"], group["weight_decay"]) == (3e-3, 0.2)


def test_training_lowers_the_loss(schedule: NoiseSchedule, data: LatentSet) -> None:
    config = CONFIG.model_copy(update=dict(steps=120, lr=3e-2))
    losses = finetune(ToyDenoiser(), schedule, data, config, generator=generator())
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


def test_one_seed_gives_one_model_and_others_another(schedule: NoiseSchedule, data: LatentSet) -> None:
    def run(seed: int, **changes: Any) -> tuple[list[float], Tensor]:
        toy = ToyDenoiser()
        config = CONFIG.model_copy(update=dict(**changes))
        return finetune(toy, schedule, data, config, generator=generator(seed)), toy.weight.detach()

    losses, weight = run(0)
    assert run(0)[0] == losses and torch.equal(run(0)[1], weight)
    assert run(1)[0] != losses
    assert run(0, flip=False)[0] != losses
    assert run(0, max_grad_norm=1e-3)[0] != losses


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(schedule: NoiseSchedule, data: LatentSet) -> None:
    broken = dataclasses.replace(data, latents=torch.full_like(data.latents, torch.nan))
    with pytest.raises(FreezeAsGuardError, match="illegal user: the loss is nan at step 0; lower its lr"):
        finetune(ToyDenoiser(), schedule, broken, CONFIG, generator=generator(), description="illegal user")
    diverging = CONFIG.model_copy(update=dict(steps=50, lr=1e30))
    with pytest.raises(FreezeAsGuardError, match=r"the loss is (nan|inf) at step [1-9]"):
        finetune(ToyDenoiser(), schedule, data, diverging, generator=generator())


class ChannelsLast(LatentSet):
    """Latents as a VAE may return them."""

    def sample(self, n: int, generator: torch.Generator, *, flip: bool = True) -> tuple[Tensor, Tensor]:
        latents, text = super().sample(n, generator, flip=flip)
        return latents.contiguous(memory_format=torch.channels_last), text


def survives(work: Callable[[], None]) -> bool:
    """Whether the work ends well in a process of its own: a crash in C++ would end pytest too."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode == 0


LAST = ("conv_norm_out", "conv_out", "up_blocks.3")


@pytest.mark.parametrize("trained", [LAST, LAST[:2], ("down_blocks.0",)])
def test_channels_last_latents_do_not_crash_group_norm(
    trained: tuple[str, ...], tiny_unet: Any, schedule: NoiseSchedule
) -> None:
    # torch 2.13: group_norm's backward crashes on a channels_last input that needs no gradient. Where
    # conv_in is frozen and the first block trains, its first norm gets exactly that.
    plain = random_latents(8, seed=0)
    data = ChannelsLast(plain.latents, plain.text)
    names = [name for name, _ in tiny_unet.named_parameters()]
    frozen = {name for name in names if not name.startswith(trained)}
    assert 0 < len(frozen) < len(names)
    config = CONFIG.model_copy(update=dict(steps=1))

    def work() -> None:
        reference = copy.deepcopy(tiny_unet)
        before = weights_of(tiny_unet)
        losses = finetune(tiny_unet, schedule, data, config, frozen=frozen, generator=generator())
        assert changed_tensors(tiny_unet, before).keys() == set(names) - frozen
        assert losses == finetune(reference, schedule, plain, config, frozen=frozen, generator=generator())

    assert survives(work)


def test_the_network_is_given_contiguous_latents(schedule: NoiseSchedule, toy: ToyDenoiser) -> None:
    seen: list[bool] = []
    toy.register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous()))
    latents = torch.randn(2, CHANNELS, SIZE, SIZE, generator=generator()).to(memory_format=torch.channels_last)
    assert not latents.is_contiguous()
    denoising_loss(toy, schedule, latents, torch.zeros(2, TOKENS, TEXT), torch.tensor([1, 2]), latents.clone())
    assert seen == [True]


# --- drawing a batch ------------------------------------------------------------------------------


def test_a_batch_holds_its_sets_one_after_the_other_and_draws_in_a_fixed_order(schedule: NoiseSchedule) -> None:
    sets = [random_latents(4, seed=1), random_latents(5, seed=2)]
    batch = draw_batch(sets, 3, schedule, generator(5), torch.device("cpu"))
    by_hand = generator(5)
    parts = [data.sample(3, by_hand) for data in sets]  # images and flips of each set, then timesteps, then noise
    timesteps = torch.randint(1000, (6,), generator=by_hand)
    noise = torch.randn(6, CHANNELS, SIZE, SIZE, generator=by_hand)
    assert torch.equal(batch.latents, torch.cat([latents for latents, _ in parts]))
    assert torch.equal(batch.text, torch.cat([text for _, text in parts]))
    assert torch.equal(batch.timesteps, timesteps) and torch.equal(batch.noise, noise)


def test_a_batch_like_another_has_its_noise_and_other_images(schedule: NoiseSchedule, data: LatentSet) -> None:
    draws = generator()
    first = draw_batch([data], 4, schedule, draws, torch.device("cpu"))
    state = draws.get_state()
    again = draw_batch([data], 4, schedule, draws, torch.device("cpu"), like=first)
    assert torch.equal(again.timesteps, first.timesteps) and torch.equal(again.noise, first.noise)
    draws.set_state(state)
    latents, text = data.sample(4, draws)
    assert torch.equal(again.latents, latents) and torch.equal(again.text, text)
    assert not torch.equal(again.text, first.text)


# --- kill and resume ------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def run(
    schedule: NoiseSchedule,
    data: LatentSet,
    checkpoint: Checkpoint | None = None,
    kill_at: int | None = None,
) -> tuple[list[float], dict[str, Tensor], int]:
    """A fresh run, killed at the start of a step: its losses, its weights, and the steps it took."""
    toy = ToyDenoiser()
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        if steps == kill_at:
            raise Killed
        steps += 1

    toy.register_forward_pre_hook(count)
    losses = finetune(toy, schedule, data, CONFIG, frozen={"bias"}, generator=generator(), checkpoint=checkpoint)
    return losses, weights_of(toy), steps


def assert_same(found: tuple[list[float], dict[str, Tensor], int], expected: Any, steps: int) -> None:
    assert found[0] == expected[0]
    assert all(torch.equal(found[1][name], tensor) for name, tensor in expected[1].items())
    assert found[2] == steps


@pytest.mark.parametrize(("kill_at", "left"), [(1, 7), (2, 5), (5, 3), (6, 1)])
def test_a_killed_run_ends_bit_for_bit_as_if_it_had_not_been(
    kill_at: int, left: int, schedule: NoiseSchedule, data: LatentSet, tmp_path: Path
) -> None:
    expected = run(schedule, data)
    assert expected[2] == CONFIG.steps
    checkpoint = Checkpoint(tmp_path / "deep" / "run.pt", {"seed": 0})
    with pytest.raises(Killed):
        run(schedule, data, checkpoint, kill_at)
    assert checkpoint.path.exists() == (kill_at >= 2)
    # A checkpoint every second step: the run goes on from there, not from the start.
    assert_same(run(schedule, data, checkpoint), expected, steps=left)


def test_a_run_killed_twice(schedule: NoiseSchedule, data: LatentSet, tmp_path: Path) -> None:
    expected = run(schedule, data)
    checkpoint = Checkpoint(tmp_path / "run.pt", {})
    for kill_at in (3, 3):
        with pytest.raises(Killed):
            run(schedule, data, checkpoint, kill_at)
    assert_same(run(schedule, data, checkpoint), expected, steps=3)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_torn_checkpoint_is_ignored(share: float, schedule: NoiseSchedule, data: LatentSet, tmp_path: Path) -> None:
    expected = run(schedule, data)
    checkpoint = Checkpoint(tmp_path / "run.pt", {})
    with pytest.raises(Killed):
        run(schedule, data, checkpoint, kill_at=5)
    content = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(content[: int(share * len(content))])
    assert checkpoint.load() is None
    checkpoint.path.write_bytes(content[: int(share * len(content))])
    assert_same(run(schedule, data, checkpoint), expected, steps=CONFIG.steps)


def test_a_torch_file_of_another_kind_is_ignored(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "run.pt")
    assert Checkpoint(tmp_path / "run.pt", {}).load() is None


def test_a_checkpoint_of_another_identity_is_ignored(schedule: NoiseSchedule, data: LatentSet, tmp_path: Path) -> None:
    """What makes an identity is in test_adapt: all that a user's run depends on."""
    expected = run(schedule, data)
    path, identity = tmp_path / "run.pt", {"seed": 0, "mask": "a"}
    with pytest.raises(Killed):
        run(schedule, data, Checkpoint(path, identity), kill_at=5)
    others = ({"seed": 1, "mask": "a"}, {"seed": 0, "mask": "b"}, {"seed": 0})
    for other in others:
        assert Checkpoint(path, other).load() is None
    state = Checkpoint(path, identity).load()
    assert state is not None and len(state["losses"]) == 4
    assert_same(run(schedule, data, Checkpoint(path, others[0])), expected, steps=CONFIG.steps)


def test_a_checkpoint_holds_only_trained_tensors_and_leaves_no_other_file(
    schedule: NoiseSchedule, data: LatentSet, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(tmp_path / "run.pt", {})
    with pytest.raises(Killed):
        run(schedule, data, checkpoint, kill_at=3)
    state = checkpoint.load()
    assert state is not None
    assert state["tensors"].keys() == weights_of(ToyDenoiser()).keys() - {"bias"}
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]
    checkpoint.clear()
    checkpoint.clear()
    assert not list(tmp_path.iterdir())


def test_a_kill_while_saving_keeps_the_checkpoint_before(
    schedule: NoiseSchedule, data: LatentSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(schedule, data)
    checkpoint = Checkpoint(tmp_path / "run.pt", {})
    save = torch.save
    saves: list[int] = []

    def torn(content: Any, path: Path) -> None:
        saves.append(1)
        save(content, path)
        if len(saves) == 2:
            path.write_bytes(path.read_bytes()[:100])
            raise Killed

    monkeypatch.setattr(training.torch, "save", torn)
    with pytest.raises(Killed):
        run(schedule, data, checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]
    assert_same(run(schedule, data, checkpoint), expected, steps=CONFIG.steps - 2)


def test_sigterm_leaves_a_checkpoint_of_the_step_it_came_in(
    schedule: NoiseSchedule, data: LatentSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is preempted loses no step, however seldom checkpoints are."""
    expected = run(schedule, data)
    monkeypatch.setattr(training, "accumulated_loss", with_signal_at(3, training.accumulated_loss))
    monkeypatch.setitem(globals(), "CONFIG", CONFIG.model_copy(update={"checkpoint_steps": None}))
    checkpoint = Checkpoint(tmp_path / "run.pt", {})
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with pytest.raises(SystemExit, match="143"):
            run(schedule, data, checkpoint)
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert_same(run(schedule, data, checkpoint), expected, steps=CONFIG.steps - 3)


def with_signal_at(step: int, work: Callable[..., Tensor]) -> Callable[..., Tensor]:
    calls: list[int] = []

    def wrapped(*args: Any, **how: Any) -> Tensor:
        calls.append(1)
        if len(calls) == step:
            signal.raise_signal(signal.SIGTERM)
        return work(*args, **how)

    return wrapped


@pytest.mark.parametrize(("minutes", "kept"), [(1e-9, 4), (1e6, None), (None, None)])
def test_checkpoints_are_due_by_time_where_steps_are_long(
    minutes: float | None,
    kept: int | None,
    schedule: NoiseSchedule,
    data: LatentSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"checkpoint_steps": None, "checkpoint_minutes": minutes}
    monkeypatch.setitem(globals(), "CONFIG", CONFIG.model_copy(update=changes))
    checkpoint = Checkpoint(tmp_path / "run.pt", {})
    with pytest.raises(Killed):
        run(schedule, data, checkpoint, kill_at=4)
    state = checkpoint.load()
    assert (len(state["losses"]) if state else None) == kept
