"""Units of a mask, and what holds them under a trainer: the fine-tuning loop, and one of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conftest import CHANNELS, SIZE, TEXT, TOKENS, ToyDenoiser, random_latents
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.batches import drawn_loss
from freezeasguard.models.diffusion import NoiseSchedule, named_tensors
from freezeasguard.models.freezing import Frozen
from freezeasguard.models.granularity import (
    check_units,
    mask_counts,
    mask_digest,
    n_units,
    normal_form,
    pack_bits,
    spread_over_weights,
    unpack_bits,
)
from freezeasguard.models.latents import LatentSet
from freezeasguard.models.protected import Protected, freeze_for_training
from freezeasguard.settings.users import Finetuning
from freezeasguard.users.training import Checkpoint, finetune

CONFIG = Finetuning(steps=5, batch_size=3, lr=1e-2, weight_decay=0.3, checkpoint_steps=2)
PARTS = ("row", "element")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shapes_of(network: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in named_tensors(network).items()}


def weights_of(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(network).items()}


def drawn_units(network: torch.nn.Module, granularity: str, seed: int = 0) -> dict[str, Tensor]:
    """About half of each tensor's units, drawn; some tensors have all or none."""
    draw = generator(seed)
    return {
        name: torch.rand(n_units(shape, granularity), generator=draw) < 0.5
        for name, shape in sorted(shapes_of(network).items())
    }


def on_weights(units: Mapping[str, Tensor], network: torch.nn.Module, granularity: str) -> dict[str, Tensor]:
    """bool, each shaped like its tensor; tensors without a mask are all False."""
    masks = {name: torch.zeros(shape).bool() for name, shape in shapes_of(network).items()}
    for name, chosen in units.items():
        masks[name] |= spread_over_weights(chosen, masks[name].shape, granularity)
    return masks


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.fixture
def data() -> LatentSet:
    return random_latents(8, seed=0)


# --- units ----------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=40))
def test_packing_comes_back_at_any_length(bits: list[bool]) -> None:
    units = torch.tensor(bits, dtype=torch.bool)
    packed = pack_bits(units)
    assert packed.dtype == torch.uint8 and len(packed) == -(-len(bits) // 8)
    assert torch.equal(unpack_bits(packed, len(bits)), units)


def test_the_first_unit_is_the_lowest_bit() -> None:
    assert pack_bits(torch.tensor([True, False, True] + [False] * 6 + [True])).tolist() == [5, 2]


@pytest.mark.parametrize(("n_bytes", "dtype"), [(1, torch.uint8), (3, torch.uint8), (2, torch.float32)])
def test_a_mask_of_other_bytes_is_refused(n_bytes: int, dtype: torch.dtype) -> None:
    packed = torch.zeros(n_bytes, dtype=dtype)
    with pytest.raises(FreezeAsGuardError, match=r"[123] bytes of mask .* for 9 units, which need 2 \(uint8\)"):
        unpack_bits(packed, 9)


def test_the_normal_form_names_whole_tensors_and_drops_untouched_ones() -> None:
    part = torch.tensor([True, False])
    units = {"b": part, "all": torch.ones(3).bool(), "none": torch.zeros(3).bool(), "a": part}
    whole, parts = normal_form({"w"}, units)
    assert whole == {"w", "all"} and list(parts) == ["a", "b"]
    with pytest.raises(FreezeAsGuardError, match="freezes a whole and in part"):
        normal_form({"a"}, units)


@pytest.mark.parametrize(
    ("granularity", "units", "said"),
    [
        ("row", {"nope": torch.ones(4).bool()}, "lacks, e.g. nope"),
        ("row", {"weight": torch.ones(5).bool()}, r"weight is torch.bool \[5\]; .*'row' asks for bool \[4\]"),
        ("element", {"weight": torch.ones(4).bool()}, r"'element' asks for bool \[16\], as the tensor is \[4, 4\]"),
        ("row", {"weight": torch.rand(4)}, r"weight is torch.float32 \[4\]"),
        ("tensor", {"weight": torch.ones(4).bool()}, r"'tensor' asks for bool \[1\]"),
        ("column", {}, "granularity is 'column'"),
    ],
)
def test_units_of_another_network_are_refused_before_anything_is_frozen(
    granularity: str, units: dict[str, Tensor], said: str, toy: ToyDenoiser
) -> None:
    with pytest.raises(FreezeAsGuardError, match=said):
        check_units(units, shapes_of(toy), granularity)
    with pytest.raises(FreezeAsGuardError, match=said):
        Frozen(toy, {"bias"}, units, granularity)
    assert toy.bias.requires_grad


def test_equal_masks_have_one_digest_and_others_another() -> None:
    part, whole = torch.tensor([True, False, False]), torch.ones(3).bool()
    digest = mask_digest({"w"}, {"p": part}, "row")
    assert mask_digest((), {"w": whole, "p": part, "z": ~whole}, "row") == digest
    others = {
        mask_digest({"w"}, {"p": part}, "element"),
        mask_digest({"w"}, {"p": part.flip(0)}, "row"),
        mask_digest({"w"}, {"q": part}, "row"),
        mask_digest({"p", "w"}, {}, "row"),
        mask_digest((), {"p": part}, "row"),
    }
    assert len(others | {digest}) == 6


def test_counts_by_hand(toy: ToyDenoiser) -> None:
    # toy: gain, skip [], weight [4, 4], text [8, 4], time, bias [4], speed [1] -> 23 rows, 59 weights
    shapes = shapes_of(toy)
    rows = {"text": torch.arange(8) < 3}
    assert mask_counts({"weight", "gain"}, rows, shapes, "row") == {
        "n_units": 23,
        "n_frozen": 3 + 4 + 1,
        "share_of_parameters_frozen": (3 * 4 + 16 + 1) / 59,
    }
    weights = {"text": torch.arange(32) < 3}
    assert mask_counts({"weight"}, weights, shapes, "element")["share_of_parameters_frozen"] == (3 + 16) / 59
    assert mask_counts({"weight"}, {}, shapes, "tensor") == {
        "n_units": 7,
        "n_frozen": 1,
        "share_of_parameters_frozen": 16 / 59,
    }


# --- the fine-tuning loop -------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", PARTS)
def test_exactly_the_unfrozen_weights_move(granularity: str, schedule: NoiseSchedule, data: LatentSet) -> None:
    toy = ToyDenoiser()
    with torch.no_grad():
        toy.text[0, 0] = -0.0  # a sign that sums and products with 0 lose
    units = drawn_units(toy, granularity)
    units["text"][0] = True
    before, masks = weights_of(toy), on_weights(units, toy, granularity)
    assert 5 < sum(int(mask.sum()) for mask in masks.values()) < 54
    finetune(toy, schedule, data, CONFIG, frozen_units=units, granularity=granularity, generator=generator())
    for name, after in weights_of(toy).items():
        assert same_bits(after[masks[name]], before[name][masks[name]]), name
        assert (after != before[name])[~masks[name]].all(), name


@pytest.mark.parametrize("granularity", PARTS)
def test_frozen_weights_of_a_unet_stay(
    granularity: str, tiny_unet: Any, schedule: NoiseSchedule, data: LatentSet
) -> None:
    units = drawn_units(tiny_unet, granularity)
    before, masks = weights_of(tiny_unet), on_weights(units, tiny_unet, granularity)
    config = CONFIG.model_copy(update=dict(steps=2))
    finetune(tiny_unet, schedule, data, config, frozen_units=units, granularity=granularity, generator=generator())
    after = weights_of(tiny_unet)
    assert len(after) == 686
    assert all(same_bits(after[name][mask], before[name][mask]) for name, mask in masks.items())
    moved = torch.cat([(after[name] != before[name])[~mask] for name, mask in masks.items()])
    assert moved.float().mean() > 0.99  # a bias at 0 without a gradient may stay


@pytest.mark.parametrize("granularity", PARTS)
def test_clipping_sees_the_trainable_weights_alone(
    granularity: str, schedule: NoiseSchedule, data: LatentSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = ToyDenoiser()
    units = drawn_units(toy, granularity)
    masks = on_weights(units, toy, granularity)
    norms: list[tuple[float, float]] = []
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters: Any, norm: float) -> Tensor:
        gradients = {name: p.grad for name, p in toy.named_parameters() if p.grad is not None}
        assert all(not g[masks[name]].any() and g[~masks[name]].all() for name, g in gradients.items())
        trained = torch.cat([g[~masks[name]] for name, g in gradients.items()])
        norms.append((float(trained.norm()), float(found := clip(parameters, norm))))
        return found

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    finetune(toy, schedule, data, CONFIG, frozen_units=units, granularity=granularity, generator=generator())
    assert len(norms) == CONFIG.steps
    assert all(trained == pytest.approx(clipped) for trained, clipped in norms)


class WithoutTheFrozenRows(ToyDenoiser):
    """The toy whose first two rows of `weight` are constants, not parameters."""

    def __init__(self) -> None:
        super().__init__()
        whole = self.weight.detach()
        del self.weight
        self.held, self.moving = whole[:2].clone(), torch.nn.Parameter(whole[2:].clone())

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Any:
        self.weight = torch.cat([self.held, self.moving])
        return super().forward(x, t, text)


def test_training_with_frozen_rows_is_training_without_them(schedule: NoiseSchedule, data: LatentSet) -> None:
    config = CONFIG.model_copy(update=dict(max_grad_norm=0.05))  # far below the gradient: what is clipped matters
    toy, reference = ToyDenoiser(), WithoutTheFrozenRows()
    rows = {"weight": torch.tensor([True, True, False, False])}
    losses = finetune(toy, schedule, data, config, frozen_units=rows, granularity="row", generator=generator())
    assert losses == pytest.approx(finetune(reference, schedule, data, config, generator=generator()), rel=1e-5)
    torch.testing.assert_close(toy.weight[2:], reference.moving)
    torch.testing.assert_close(toy.text, reference.text)


def train(
    schedule: NoiseSchedule, data: LatentSet, units: dict[str, Tensor], granularity: str, **more: Any
) -> tuple[list[float], dict[str, Tensor]]:
    toy = ToyDenoiser()
    losses = finetune(
        toy, schedule, data, CONFIG, frozen_units=units, granularity=granularity, generator=generator(), **more
    )
    return losses, weights_of(toy)


@pytest.mark.parametrize("granularity", PARTS)
def test_a_mask_that_covers_whole_tensors_is_the_tensor_mask(
    granularity: str, schedule: NoiseSchedule, data: LatentSet
) -> None:
    names, shapes = {"weight", "gain", "time"}, shapes_of(ToyDenoiser())
    units = {name: torch.full((n_units(shape, granularity),), name in names) for name, shape in shapes.items()}
    losses, weights = train(schedule, data, units, granularity)
    expected_losses, expected = train(schedule, data, {}, "tensor", frozen=names)
    assert losses == expected_losses
    assert all(same_bits(weights[name], tensor) for name, tensor in expected.items())


def test_a_weight_mask_that_covers_whole_rows_is_the_row_mask(schedule: NoiseSchedule, data: LatentSet) -> None:
    rows = drawn_units(ToyDenoiser(), "row")
    weights = {name: mask.flatten() for name, mask in on_weights(rows, ToyDenoiser(), "row").items()}
    by_row, by_weight = train(schedule, data, rows, "row"), train(schedule, data, weights, "element")
    assert by_row[0] == by_weight[0]
    assert all(same_bits(by_row[1][name], tensor) for name, tensor in by_weight[1].items())
    assert by_row[0] != train(schedule, data, {}, "row")[0]


@pytest.mark.parametrize("granularity", PARTS)
def test_a_killed_run_ends_bit_for_bit_as_if_it_had_not_been(
    granularity: str, schedule: NoiseSchedule, data: LatentSet, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    toy, steps = ToyDenoiser(), 0
    units, masks = drawn_units(toy, granularity), on_weights(drawn_units(toy, granularity), toy, granularity)
    expected = train(schedule, data, units, granularity)

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise Killed

    toy.register_forward_pre_hook(count)
    checkpoint = Checkpoint(tmp_path / "run.pt", {})
    settings: dict[str, Any] = {"frozen_units": units, "granularity": granularity, "checkpoint": checkpoint}
    with pytest.raises(Killed):
        finetune(toy, schedule, data, CONFIG, generator=generator(), **settings)
    state = checkpoint.load()
    assert state is not None and len(state["losses"]) == 2
    resumed = train(schedule, data, units, granularity, checkpoint=checkpoint)
    assert resumed[0] == expected[0]
    assert all(same_bits(resumed[1][name], tensor) for name, tensor in expected[1].items())
    published = weights_of(ToyDenoiser())
    assert all(same_bits(resumed[1][name][mask], published[name][mask]) for name, mask in masks.items())


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_enforced_once_the_loop_has_ended(fails: bool, schedule: NoiseSchedule, data: LatentSet) -> None:
    toy = ToyDenoiser()
    rows = {"weight": torch.tensor([True, False, False, False])}
    config = CONFIG.model_copy(update=dict(lr=1e30 if fails else 1e-2, steps=20))
    with pytest.raises(FreezeAsGuardError, match="the loss is") if fails else nullcontext():
        finetune(toy, schedule, data, config, frozen_units=rows, granularity="row", generator=generator())
    toy.load_state_dict(ToyDenoiser().state_dict())
    drawn_loss(toy, schedule, data, 3, generator()).backward()
    assert toy.weight.grad is not None and toy.weight.grad[0].all()


# --- a trainer of the user's own ------------------------------------------------------------------


def hooks_of(network: torch.nn.Module) -> int:
    return sum(len(p._backward_hooks or ()) for p in network.parameters())


def test_a_mask_of_whole_tensors_costs_nothing(toy: ToyDenoiser) -> None:
    for units, expected in (({}, 0), ({"weight": torch.arange(4) < 2, "bias": torch.ones(4).bool()}, 1)):
        with Frozen(toy, {"text"}, units, "row") as frozen:
            optimizer = torch.optim.AdamW(frozen.trainable.values())
            frozen.guard(optimizer)
            assert (hooks_of(toy), len(optimizer._optimizer_step_post_hooks)) == (expected, expected)
        assert (hooks_of(toy), len(optimizer._optimizer_step_post_hooks)) == (0, 0)
    assert {name for name, p in toy.named_parameters() if not p.requires_grad} == {"text", "bias"}


@pytest.mark.parametrize("granularity", PARTS)
def test_another_optimiser_with_summed_gradients(granularity: str, schedule: NoiseSchedule, data: LatentSet) -> None:
    toy = ToyDenoiser()
    protected = Protected("x", granularity=granularity, frozen_units=drawn_units(toy, granularity))
    masks = on_weights(drawn_units(toy, granularity), toy, granularity)
    before = weights_of(toy)
    frozen = freeze_for_training(toy, protected)
    # SGD's weight decay is part of the gradient it uses, so its momentum carries frozen weights along too.
    optimizer = torch.optim.SGD(toy.parameters(), lr=1e-2, momentum=0.9, weight_decay=0.1)
    frozen.guard(optimizer)
    draw = generator()
    for _ in range(3):
        for _ in range(2):
            drawn_loss(toy, schedule, data, 3, draw).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = weights_of(toy)
    assert all(same_bits(after[name][mask], before[name][mask]) for name, mask in masks.items())
    assert all((after[name] != before[name])[~mask].all() for name, mask in masks.items())


def test_weight_decay_moves_frozen_rows_unless_the_optimiser_is_guarded(toy: ToyDenoiser) -> None:
    rows = {"weight": torch.tensor([True, False, True, False])}
    before = toy.weight.detach().clone()
    with Frozen(toy, (), rows, "row") as frozen:
        optimizer = torch.optim.AdamW(frozen.trainable.values(), lr=0.1, weight_decay=0.1)
        toy(torch.ones(1, CHANNELS, SIZE, SIZE), torch.tensor([3]), torch.ones(1, TOKENS, TEXT)).sample.sum().backward()
        optimizer.step()
        torch.testing.assert_close(toy.weight[[0, 2]], before[[0, 2]] * 0.99)  # decay alone: no gradient came through
        frozen.restore()
        assert same_bits(toy.weight.detach()[[0, 2]], before[[0, 2]])
        assert not torch.equal(toy.weight[[1, 3]], before[[1, 3]])


def test_gradients_that_are_not_finite_do_not_reach_frozen_weights(toy: ToyDenoiser) -> None:
    weights = {"weight": torch.arange(16) % 3 == 0}
    before = toy.weight.detach().clone()
    with Frozen(toy, (), weights, "element") as frozen:
        optimizer = torch.optim.AdamW(frozen.trainable.values())
        frozen.guard(optimizer)
        toy.weight.grad = torch.full_like(toy.weight, torch.nan)  # as clipping by a norm that overflowed leaves it
        optimizer.step()
    chosen = weights["weight"].view(4, 4)
    assert same_bits(toy.weight.detach()[chosen], before[chosen]) and toy.weight[~chosen].isnan().all()
