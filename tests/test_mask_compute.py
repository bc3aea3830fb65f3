"""Mask learning as a GPU computes it: parts of a batch, users who rest, bfloat16, activations made twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import ToyDenoiser
from freezeasguard.masks import bilevel, mask
from freezeasguard.masks.bilevel import LearnedMask, MaskLearner, learn_without_signal, micro_batches
from freezeasguard.masks.mask import project_to_ratio, soft_mask
from freezeasguard.masks.simulated_user import exchange
from freezeasguard.models import computing
from freezeasguard.models.batches import Batch
from freezeasguard.models.diffusion import NoiseSchedule
from freezeasguard.models.granularity import top_units
from freezeasguard.models.latents import LatentSet
from freezeasguard.settings.compute import Compute
from test_bilevel import mask_config, moved, sides_of, weights_of

Data = dict[str, LatentSet]


def learn(
    schedule: NoiseSchedule, data: Data, compute: Compute, network: torch.nn.Module | None = None, **changes: Any
) -> tuple[LearnedMask, MaskLearner]:
    changes = {"user_lr": 0.01, "batch_size": 6, "mask_batch_size": 5, **changes}
    config = mask_config(changes.pop("preset", "freezeasguard"), **changes)
    network = network or ToyDenoiser(1, torch.float64)
    start = weights_of(network)
    finetuned = {sides: moved(start, i, by=0.02) for i, sides in enumerate(sides_of(config.users))}
    learner = MaskLearner(network, schedule, data, finetuned, config, 0.3, torch.Generator().manual_seed(0), compute)
    return learner.learn(), learner


def weights_after(learner: MaskLearner) -> list[Tensor]:
    return [t for user in learner.users for n in learner.names for t in (user.mixed[n], user.delta[n])]


# --- micro-batches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 1, 2, 3, 5, 6, 100])
@pytest.mark.parametrize("n_sides", [1, 2])
def test_micro_batches_are_the_batch_with_each_side_in_every_part(size: int | None, n_sides: int) -> None:
    batch = Batch(*(torch.arange(6.0)[:, None] + 10 * i for i in range(4)))
    parts = micro_batches(batch, size, n_sides)
    assert sum(share for _, share in parts) == pytest.approx(1)
    for part, share in parts:
        latents, noise = part.latents.flatten(), part.noise.flatten()
        assert len(latents) <= max(size or 6, n_sides) and share == len(latents) / 6
        assert torch.equal(noise, latents + 30)
        first = [int((latents < 3).sum()), int((latents >= 3).sum())]
        assert n_sides == 1 or first[0] == first[1]
    assert sorted(torch.cat([part.latents for part, _ in parts]).flatten().tolist()) == list(range(6))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"granularity": "element"},
        {"user_optimizer": "sgd", "signal": "local"},
        {"users": "joint"},
        {"users": "joint", "lower_loss": "mixed", "user_optimizer": "sgd"},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 4])
def test_parts_of_a_batch_give_the_whole_ones_mask(
    size: int, changes: dict[str, Any], schedule: NoiseSchedule, latent_sets: Data
) -> None:
    whole, one = learn(schedule, latent_sets, Compute(), **changes)
    parts, other = learn(schedule, latent_sets, Compute(micro_batch_size=size), **changes)
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-5, atol=1e-6)
    assert parts.history.user_loss == pytest.approx(whole.history.user_loss, rel=1e-6)
    assert parts.history.loss["legal"] == pytest.approx(whole.history.loss["legal"], rel=1e-6)
    for a, b in zip(weights_after(one), weights_after(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for p in other.unet.parameters())
    assert not torch.equal(whole.logits, whole.initial_logits)


# --- users who rest on the host -------------------------------------------------------------------------------


def test_users_change_places_without_new_storage() -> None:
    first, second = ({"a": torch.full((3,), v), "b": torch.full((2, 2), v)} for v in (1.0, 2.0))
    places = [[t.data_ptr() for t in user.values()] for user in (first, second)]
    exchange([first], [second])
    assert [[t.data_ptr() for t in user.values()] for user in (first, second)] == places[::-1]
    assert first["a"].tolist() == [1, 1, 1] and second["b"].flatten().tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("changes", [{}, {"granularity": "row", "user_optimizer": "sgd"}, {"users": "joint"}], ids=str)
def test_a_user_who_rests_learns_the_same_to_the_byte(
    changes: dict[str, Any], schedule: NoiseSchedule, latent_sets: Data
) -> None:
    expected, both = learn(schedule, latent_sets, Compute(), **changes)
    network = ToyDenoiser(1, torch.float64)
    worn: list[dict[str, int]] = []
    network.register_forward_pre_hook(lambda m, _: worn.append({n: p.data_ptr() for n, p in m.named_parameters()}))
    found, one = learn(schedule, latent_sets, Compute(users_on_host=True), network, **changes)
    assert torch.equal(found.logits, expected.logits) and found.history.loss == expected.history.loss
    assert all(torch.equal(a, b) for a, b in zip(weights_after(one), weights_after(both), strict=True))
    assert len(worn) > 6 and all(places == worn[0] for places in worn)  # the device's storages, of whoever is awake


# --- bfloat16, and activations made twice ---------------------------------------------------------------------


def test_checkpointed_activations_change_nothing(tiny_unet: Any, schedule: NoiseSchedule, latent_sets: Data) -> None:
    import copy

    results = []
    for compute in (Compute(), Compute(gradient_checkpointing=True)):
        unet = copy.deepcopy(tiny_unet).train()
        learned, learner = learn(schedule, latent_sets, compute, unet, user_lr=1e-3, mask_steps=1)
        results.append((learned.logits, *weights_after(learner)))
        assert unet.is_gradient_checkpointing == compute.gradient_checkpointing
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_near_and_weights_stay_float32(
    schedule: NoiseSchedule, latent_sets: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(computing, "LOW_PRECISION", frozenset({"cpu"}))
    losses = {}
    for precision in ("float32", "bfloat16"):
        compute = Compute.model_validate({"precision": precision, "micro_batch_size": 2})
        learned, learner = learn(schedule, latent_sets, compute, ToyDenoiser(1), user_lr=1e-3)
        losses[precision] = [*learned.history.user_loss, *learned.history.loss["illegal"]]
        kept = [t for user in learner.users for d in (user.mixed, user.delta, *user.moments) for t in d.values()]
        assert {t.dtype for t in kept} == {torch.float32} and learned.logits.dtype == torch.float32
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


# --- many units -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("kind", ["narrow", "wide", "saturated", "outliers"])
def test_many_logits_are_projected_in_few_passes(kind: str, rho: float, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    logits = {"narrow": 1e-5 * draw, "wide": draw, "saturated": 40 * draw.sign() + draw, "outliers": draw**5}[kind]
    expected = project_to_ratio(logits.double(), 0.2, rho)  # in one piece
    for module in (mask, bilevel):
        monkeypatch.setattr(module, "CHUNK", 2**16)
        monkeypatch.setattr(mask, "SAMPLE", 2**12)
    passes: list[int] = []
    count = mask._mean_and_slope
    monkeypatch.setattr(mask, "_mean_and_slope", lambda x, *rest: (passes.append(len(x)), count(x, *rest))[1])
    found = project_to_ratio(logits, 0.2, rho)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-6)
    assert abs(float(soft_mask(project_to_ratio(logits.double(), 0.2, rho), 0.2).mean()) - rho) < 1e-12
    assert passes.count(len(logits)) <= 12 and (kind == "saturated" or passes[: len(passes) // 2].count(300_000) <= 5)


@pytest.mark.parametrize("rho", [0.0, 0.001, 0.3, 0.77, 1.0])
def test_selected_units_are_the_sorted_ones_with_ties_to_the_earlier(rho: float) -> None:
    for values in (torch.randn(1001, generator=torch.Generator().manual_seed(0)), torch.arange(1001) % 4 - 1.5):
        order = torch.sort(values, descending=True, stable=True).indices
        expected = torch.zeros(1001, dtype=torch.bool).index_fill_(0, order[: round(rho * 1001)], True)
        assert torch.equal(top_units(values, rho), expected)


@pytest.mark.parametrize("signal", ["user_path", "local"])
def test_weights_in_pieces_learn_what_they_learn_at_once(
    signal: str, schedule: NoiseSchedule, latent_sets: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"granularity": "element", "signal": signal}
    expected, _ = learn(schedule, latent_sets, Compute(), **changes)
    for module in (mask, bilevel):
        monkeypatch.setattr(module, "CHUNK", 10)
    monkeypatch.setattr(mask, "SAMPLE", 5)
    found, learner = learn(schedule, latent_sets, Compute(), **changes)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-6, atol=1e-7)
    assert found.history.path_sum["legal"] == pytest.approx(expected.history.path_sum["legal"], rel=1e-5, abs=1e-7)
    assert torch.equal(found.top(0.3), expected.top(0.3))
    silent = learn_without_signal(learner.shapes, learner.config, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(silent.initial_logits, found.initial_logits)


def test_logits_of_weights_live_beside_the_weights_and_those_of_tensors_on_the_host() -> None:
    for granularity, where in (("tensor", "cpu"), ("row", "meta"), ("element", "meta")):
        assert bilevel.units_device(granularity, "meta") == torch.device(where)
