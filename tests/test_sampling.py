from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler

from conftest import CHANNELS, SIZE, TEXT, TOKENS, ToyDenoiser
from freezeasguard.models.sampling import image_seed, sample, starting_noise

SHAPE = (CHANNELS, SIZE, SIZE)


@pytest.fixture
def pndm() -> Any:
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = starting_noise(["a", "a", "b"], [0, 1, 0], SHAPE, seed=5)
    text = torch.randn(3, TOKENS, TEXT, generator=generator)
    return noise, text, torch.randn(TOKENS, TEXT, generator=generator)


def test_noise_belongs_to_the_prompt_and_index_whatever_the_batch() -> None:
    whole = starting_noise(["a", "a", "b"], [0, 1, 0], SHAPE, seed=5)
    assert whole.shape == (3, *SHAPE)
    assert torch.equal(starting_noise(["b", "a"], [0, 1], SHAPE, seed=5), whole[[2, 1]])
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 3
    assert not torch.equal(starting_noise(["b"], [0], SHAPE, seed=6)[0], whole[2])


def test_image_seeds_are_pinned_and_distinct() -> None:
    # A change of this number changes every generated image of every published table.
    assert image_seed("a red hat", 3, 0) == 1711486825214505478
    seeds = {image_seed(p, i, s) for p in ("a", "b", "1|a") for i in (0, 1, 11) for s in (0, 1, 11)}
    assert len(seeds) == 27
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_a_batch_equals_its_images_one_by_one(pndm: Any, inputs: Any, guidance_scale: float) -> None:
    noise, text, empty = inputs
    settings = dict(steps=6, guidance_scale=guidance_scale)
    toy = ToyDenoiser()
    whole = sample(toy, pndm, noise, text, empty, **settings)  # type: ignore[arg-type]
    for i in range(3):
        alone = sample(toy, pndm, noise[i : i + 1], text[i : i + 1], empty, **settings)  # type: ignore[arg-type]
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-4, atol=1e-5)
    assert (whole[0] - whole[1]).abs().max() > 0.1


def test_a_batch_equals_its_images_one_by_one_in_a_unet(pndm: Any, inputs: Any, tiny_unet: Any) -> None:
    noise, text, empty = inputs
    whole = sample(tiny_unet, pndm, noise, text, empty, steps=3, guidance_scale=7.5)
    alone = sample(tiny_unet, pndm, noise[1:2], text[1:2], empty, steps=3, guidance_scale=7.5)
    torch.testing.assert_close(alone[0], whole[1], rtol=1e-3, atol=1e-4)


def test_sampling_leaves_the_scheduler_as_it_was(pndm: Any, inputs: Any) -> None:
    noise, text, empty = inputs
    before = copy.deepcopy(vars(pndm))
    first = sample(ToyDenoiser(), pndm, noise, text, empty, steps=4, guidance_scale=2.0)
    second = sample(ToyDenoiser(), pndm, noise, text, empty, steps=4, guidance_scale=2.0)
    assert torch.equal(first, second)
    assert pndm.ets == before["ets"] and pndm.counter == before["counter"]


def test_guidance_1_ignores_the_empty_text_and_more_guidance_does_not(pndm: Any, inputs: Any) -> None:
    noise, text, empty = inputs

    def images(guidance_scale: float, empty_text: torch.Tensor) -> torch.Tensor:
        return sample(ToyDenoiser(), pndm, noise, text, empty_text, steps=4, guidance_scale=guidance_scale)

    assert torch.equal(images(1.0, empty), images(1.0, torch.full_like(empty, torch.nan)))
    assert not torch.allclose(images(2.0, empty), images(2.0, -empty))
    assert not torch.allclose(images(1.0, empty), images(2.0, empty))


def test_guidance_leads_from_the_empty_text_towards_the_prompt(pndm: Any, inputs: Any) -> None:
    noise, text, empty = inputs
    found = sample(ToyDenoiser(), pndm, noise, text, empty, steps=4, guidance_scale=3.0)
    toy, latents = ToyDenoiser(), noise
    pndm.set_timesteps(4)
    with torch.no_grad():
        for timestep in pndm.timesteps:
            without = toy(latents, timestep, empty[None].expand(3, -1, -1)).sample
            prompted = toy(latents, timestep, text).sample
            latents = pndm.step(3 * prompted - 2 * without, timestep, latents).prev_sample
    torch.testing.assert_close(found, latents, rtol=1e-4, atol=1e-5)


def test_guidance_on_the_prompt_itself_is_no_guidance(pndm: Any, inputs: Any) -> None:
    noise, text, _ = inputs
    prompt = text[:1].expand_as(text)
    plain = sample(ToyDenoiser(), pndm, noise, prompt, text[0], steps=4, guidance_scale=1.0)
    guided = sample(ToyDenoiser(), pndm, noise, prompt, text[0], steps=4, guidance_scale=7.5)
    torch.testing.assert_close(plain, guided, rtol=1e-4, atol=1e-5)


def test_an_unguided_network_runs_on_the_plain_batch(pndm: Any, inputs: Any) -> None:
    noise, text, empty = inputs
    sizes: list[int] = []
    toy = ToyDenoiser()
    toy.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    sample(toy, pndm, noise, text, empty, steps=2, guidance_scale=1.0)
    assert set(sizes) == {3}
    calls = len(sizes)
    sample(toy, pndm, noise, text, empty, steps=2, guidance_scale=3.0)
    assert set(sizes[calls:]) == {6} and len(sizes) == 2 * calls
