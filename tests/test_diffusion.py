from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from conftest import ToyDenoiser, random_latents, sd_schedule
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.diffusion import NoiseSchedule, check_model_folder, denoising_loss, draw_noise


def batch(n: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents, text = random_latents(8, seed).sample(n, generator)
    timesteps, noise = draw_noise(latents, 1000, generator)
    return latents, text, timesteps, noise


class Oracle(torch.nn.Module):
    """Answers with what it is told, or computes the noise from z_t, z_0 and t."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Any:
        self.seen += [x, t, text]
        return SimpleNamespace(sample=self.answer)


def test_the_true_noise_has_no_loss_and_any_other_its_mean_square() -> None:
    latents, text, timesteps, noise = batch()
    assert not denoising_loss(Oracle(noise), sd_schedule(), latents, text, timesteps, noise).any()
    shift = torch.arange(6.0)
    wrong = Oracle(noise + shift[:, None, None, None])
    loss = denoising_loss(wrong, sd_schedule(), latents, text, timesteps, noise)
    torch.testing.assert_close(loss, shift.square(), rtol=1e-4, atol=1e-4)
    assert loss.shape == (6,)


def test_the_network_sees_the_noised_latents_the_timesteps_and_the_text() -> None:
    latents, text, timesteps, noise = batch()
    oracle = Oracle(noise)
    denoising_loss(oracle, sd_schedule(), latents, text, timesteps, noise)
    seen, seen_t, seen_text = oracle.seen
    a = sd_schedule().alphas_cumprod[timesteps][:, None, None, None]
    torch.testing.assert_close(seen, a.sqrt() * latents + (1 - a).sqrt() * noise)
    assert torch.equal(seen_t, timesteps) and torch.equal(seen_text, text)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_and_target_are_diffusers_own(prediction_type: str) -> None:
    latents, _, timesteps, noise = batch()
    scheduler: Any = DDPMScheduler(prediction_type=prediction_type, beta_schedule="scaled_linear")
    schedule = NoiseSchedule.of(scheduler)
    assert schedule.n_timesteps == 1000 and schedule.prediction_type == prediction_type
    torch.testing.assert_close(
        schedule.add_noise(latents, noise, timesteps), scheduler.add_noise(latents, noise, timesteps)
    )
    velocity = scheduler.get_velocity(latents, noise, timesteps)
    expected = {"epsilon": noise, "v_prediction": velocity}[prediction_type]
    torch.testing.assert_close(schedule.target(latents, noise, timesteps), expected)


def test_the_velocity_and_not_the_noise_is_the_target_of_v_prediction() -> None:
    latents, text, timesteps, noise = batch()
    schedule = sd_schedule("v_prediction")
    velocity = schedule.target(latents, noise, timesteps)
    assert not denoising_loss(Oracle(velocity), schedule, latents, text, timesteps, noise).any()
    assert (denoising_loss(Oracle(noise), schedule, latents, text, timesteps, noise) > 0).all()
    # z_t and v determine z_0: sqrt(a) z_t - sqrt(1 - a) v.
    a = schedule.alphas_cumprod[timesteps][:, None, None, None]
    noisy = schedule.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(a.sqrt() * noisy - (1 - a).sqrt() * velocity, latents, rtol=1e-4, atol=1e-5)


def test_a_sample_does_not_see_its_batch() -> None:
    latents, text, timesteps, noise = batch()
    toy = ToyDenoiser()
    whole = denoising_loss(toy, sd_schedule(), latents, text, timesteps, noise)
    alone = [denoising_loss(toy, sd_schedule(), *(x[i : i + 1] for x in batch())) for i in range(6)]
    torch.testing.assert_close(whole, torch.cat(alone))


def test_draws_are_reproducible_and_cover_the_timesteps() -> None:
    latents = torch.zeros(4000, 1, 1, 2)
    timesteps, noise = draw_noise(latents, 10, torch.Generator().manual_seed(3))
    again = draw_noise(latents, 10, torch.Generator().manual_seed(3))
    other = draw_noise(latents, 10, torch.Generator().manual_seed(4))
    assert torch.equal(timesteps, again[0]) and torch.equal(noise, again[1])
    assert not torch.equal(timesteps, other[0]) and not torch.equal(noise, other[1])
    counts = timesteps.bincount(minlength=10)
    assert len(counts) == 10 and counts.min() > 300
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


def test_draws_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw_noise(torch.zeros(3, 2), 10, torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())


def test_other_prediction_types_are_refused() -> None:
    with pytest.raises(FreezeAsGuardError, match="prediction_type is 'sample'; epsilon and v_prediction"):
        sd_schedule("sample")


def test_an_incomplete_model_folder_is_refused_by_its_missing_parts(tmp_path: Any) -> None:
    for part in ("unet", "vae", "tokenizer", "scheduler"):
        (tmp_path / part).mkdir()
    (tmp_path / "vae" / "model.safetensors").touch()
    with pytest.raises(FreezeAsGuardError) as error:
        check_model_folder(tmp_path)
    assert "lacks text_encoder, unet/*.safetensors;" in str(error.value)
    (tmp_path / "text_encoder").mkdir()
    for part in ("unet", "text_encoder"):
        (tmp_path / part / "model.safetensors").touch()
    assert check_model_folder(tmp_path) == tmp_path
