from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from conftest import ToyDenoiser, random_latents, sd_schedule
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.masks.mask import (
    hard_mask,
    hard_mask_by_parameters,
    logit_gradients,
    mask_slope,
    project_to_ratio,
    soft_mask,
    sparsity_gradient,
)
from freezeasguard.models.diffusion import denoising_loss, draw_noise
from freezeasguard.models.granularity import check_freeze_ratio, check_names, n_frozen
from freezeasguard.models.protected_file import overlap

seeds = st.integers(0, 2**31)
temperatures = st.floats(0.05, 2.0)
quick = settings(max_examples=25, deadline=None)


def taped(seed: int, temperature: float, moved: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, alignments and autograd's dL/dlogits for a network on the tape as m pre + (1 - m) ft."""
    generator = torch.Generator().manual_seed(seed)
    toy = ToyDenoiser(seed, torch.float64)
    pretrained = {name: p.detach() for name, p in toy.named_parameters()}
    delta = {n: moved * torch.randn(p.shape, generator=generator).double() for n, p in pretrained.items()}
    # w / T in -2..2: away from saturation, where every derivative is 0 and all agree.
    logits = temperature * (4 * torch.rand(len(pretrained), generator=generator).double() - 2)
    logits.requires_grad_(True)
    m = torch.sigmoid(logits / temperature)
    mixed = {
        name: m[i] * pretrained[name] + (1 - m[i]) * (pretrained[name] - delta[name])
        for i, name in enumerate(pretrained)
    }
    latents, text = random_latents(5, seed).sample(4, generator)
    timesteps, noise = draw_noise(latents, 1000, generator)

    def network(*inputs: Tensor) -> object:
        return functional_call(toy, mixed, inputs)

    loss = denoising_loss(network, sd_schedule(), latents, text, timesteps, noise).mean()  # type: ignore[arg-type]
    expected, *gradients = torch.autograd.grad(loss, [logits, *mixed.values()])
    alignments = torch.stack([(g * delta[n]).sum() for n, g in zip(mixed, gradients, strict=True)])
    return logits.detach(), alignments, expected


@quick
@given(seeds, temperatures)
def test_logit_gradients_are_autograds(seed: int, temperature: float) -> None:
    logits, alignments, expected = taped(seed, temperature)
    assert expected.abs().max() > 0
    torch.testing.assert_close(logit_gradients(alignments, logits, temperature), expected, rtol=1e-9, atol=1e-13)


@quick
@given(seeds, temperatures)
def test_the_printed_derivative_is_not_autograds(seed: int, temperature: float) -> None:
    logits, alignments, expected = taped(seed, temperature)
    printed = logit_gradients(alignments, logits, temperature, "as_printed")
    # sigmoid(1 - x) / sigmoid(-x) grows from 1 to e; at x = -2 it is 1.08.
    assert (printed.abs() > 1.05 * expected.abs()).all()


def test_an_untouched_model_gives_no_logit_gradient() -> None:
    logits, alignments, expected = taped(seed=1, temperature=0.2, moved=0.0)
    assert not logit_gradients(alignments, logits, 0.2).any()
    assert not expected.any()


def test_printed_slope_is_equation_8_as_printed() -> None:
    logits = torch.tensor([0.1, -0.3], dtype=torch.float64)
    x = logits / 0.2
    expected = 1 / (1 + torch.exp(-x)) / (1 + torch.exp(x - 1)) / 0.2
    torch.testing.assert_close(mask_slope(logits, 0.2, "as_printed"), expected)


def test_unknown_derivative_is_refused() -> None:
    with pytest.raises(FreezeAsGuardError, match="mask.derivative is 'guess'"):
        mask_slope(torch.zeros(2), 0.2, "guess")


@quick
@given(seeds, temperatures, st.floats(0, 1), st.floats(0.1, 5e3))
def test_sparsity_gradient_is_autograds(seed: int, temperature: float, rho: float, weight: float) -> None:
    logits = torch.randn(9, generator=torch.Generator().manual_seed(seed)).double().requires_grad_(True)
    penalty = weight * (torch.sigmoid(logits / temperature).mean() - rho) ** 2
    (expected,) = torch.autograd.grad(penalty, logits)
    found = sparsity_gradient(logits.detach(), temperature, rho, weight)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_smaller_temperature_is_nearer_to_a_hard_mask() -> None:
    logits = torch.tensor([-0.5, 0.5])
    warm, cold = soft_mask(logits, 1.0), soft_mask(logits, 0.05)
    assert cold[0] < 1e-4 < warm[0] < 0.5 < warm[1] < 1 - 1e-4 < cold[1]


@quick
@given(seeds, temperatures, st.floats(0.01, 0.99), st.floats(0.01, 10))
def test_projection_hits_rho_and_keeps_the_ranking(seed: int, temperature: float, rho: float, spread: float) -> None:
    logits = spread * torch.randn(50, generator=torch.Generator().manual_seed(seed)).double()
    projected = project_to_ratio(logits, temperature, rho)
    assert abs(float(soft_mask(projected, temperature).mean()) - rho) < 1e-9
    assert torch.equal(projected.argsort(), logits.argsort())
    torch.testing.assert_close(projected - logits, (projected - logits)[:1].expand(50), rtol=0, atol=1e-9)


@pytest.mark.parametrize("rho", [0, 1, 0.0, 1.0])
def test_projection_to_nothing_or_everything_leaves_the_logits(rho: float) -> None:
    logits = torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(project_to_ratio(logits, 0.2, rho), logits)


@pytest.mark.parametrize(
    ("rho", "n", "expected"),
    [(0.3, 686, 206), (0.1, 686, 69), (0.5, 686, 343), (0.8, 686, 549), (0, 686, 0), (1, 686, 686), (0.3, 1, 0)],
)
def test_number_of_frozen_tensors(rho: float, n: int, expected: int) -> None:
    assert n_frozen(rho, n) == expected


@quick
@given(seeds, st.floats(0, 1), st.integers(1, 200))
def test_hard_mask_freezes_the_largest_logits(seed: int, rho: float, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, generator=generator)
    names = [f"tensor.{i:03}" for i in range(n)]
    frozen = hard_mask(logits, names, rho)
    assert len(frozen) == round(rho * n)
    assert abs(len(frozen) - rho * n) <= 0.5
    value = dict(zip(names, logits.tolist(), strict=True))
    left = [value[name] for name in names if name not in frozen]
    assert not frozen or not left or min(value[name] for name in frozen) >= max(left)


@pytest.mark.parametrize("percent", range(0, 101, 5))
@pytest.mark.parametrize("n", [1, 2, 7, 32, 686])
def test_tied_logits_still_give_the_exact_count(percent: int, n: int) -> None:
    frozen = hard_mask(torch.zeros(n), [str(i) for i in range(n)], percent / 100)
    assert len(frozen) == round(percent / 100 * n)


def test_polarity_a_large_logit_is_frozen() -> None:
    logits = torch.tensor([-5.0, 5.0])
    assert soft_mask(logits, 0.2)[1] > 0.99
    assert hard_mask(logits, ["train", "freeze"], 0.5) == {"freeze"}


@pytest.mark.parametrize("names", [["b", "a", "c"], ["c", "b", "a"]])
def test_ties_fall_to_the_earlier_name(names: list[str]) -> None:
    assert hard_mask(torch.ones(3), names, 1 / 3) == {"a"}
    assert hard_mask(torch.ones(3), names, 2 / 3) == {"a", "b"}


def test_hard_mask_refuses_other_names() -> None:
    with pytest.raises(FreezeAsGuardError, match="3 logits for 2 tensor names"):
        hard_mask(torch.zeros(3), ["a", "b"], 0.5)


@pytest.mark.parametrize("rho", [-0.01, 1.01, 30, float("nan"), float("inf")])
def test_a_ratio_outside_0_to_1_is_refused(rho: float) -> None:
    for refuse in (check_freeze_ratio, lambda r: n_frozen(r, 10), lambda r: hard_mask(torch.zeros(2), ["a", "b"], r)):
        with pytest.raises(FreezeAsGuardError, match=r"rho is .*0\.\.1"):
            refuse(rho)


def test_names_that_the_network_lacks_are_refused() -> None:
    check_names({"a"}, ["a", "b"])
    check_names((), ["a"])
    with pytest.raises(FreezeAsGuardError, match="names 2 tensors that the network lacks, e.g. x"):
        check_names({"a", "y", "x"}, ["a", "b"])


def test_overlap() -> None:
    assert overlap({"a", "b", "c", "d"}, {"c", "d", "e"}) == 0.5
    assert overlap({"a"}, {"a"}) == 1
    assert overlap({"a"}, set()) == 0
    assert overlap(set(), {"a"}) == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_of_weights_is_packed_nearly_as_well_as_can_be(seed: int) -> None:
    """Against all 2^10 sets: within one tensor's worth of the best; and the best, where all tensors are as large."""
    draw = torch.Generator().manual_seed(seed)
    names = [f"t{i}" for i in range(10)]
    logits = torch.randn(10, generator=draw, dtype=torch.float64)
    for sizes in (
        dict.fromkeys(names, 3),
        dict(zip(names, torch.randint(1, 50, (10,), generator=draw).tolist(), strict=True)),
    ):
        budget = 0.4 * sum(sizes.values())

        def worth(trained: Iterable[str]) -> float:
            return -sum(float(logits[names.index(name)]) for name in trained)

        sets = [subset for n in range(11) for subset in itertools.combinations(names, n)]
        best = max(worth(subset) for subset in sets if sum(sizes[name] for name in subset) <= budget)
        trained = set(names) - hard_mask_by_parameters(logits, sizes, 0.6)
        assert sum(sizes[name] for name in trained) <= budget
        assert all(logits[names.index(name)] < 0 for name in trained)
        assert worth(trained) >= best - float((-logits).max())
        if len(set(sizes.values())) == 1:
            assert worth(trained) == pytest.approx(best)
