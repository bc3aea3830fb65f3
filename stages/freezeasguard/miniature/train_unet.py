"""Train the miniature UNet on cached latents of the generic corpus."""

from __future__ import annotations

import copy

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from tqdm.auto import tqdm

from freezeasguard.models.diffusion import NoiseSchedule, denoising_loss, draw_noise


def train_unet(
    unet: UNet2DConditionModel,
    schedule: NoiseSchedule,
    latents: Tensor,
    text: Tensor,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    caption_dropout: float = 0.1,
    ema_decay: float = 0.998,
) -> tuple[UNet2DConditionModel, list[float]]:
    """Pretrain on the denoising loss; returns the moving average of the weights and the loss curve.

    Args:
        latents: [n, 2, c, h, w], both flips; text: [n + 1, tokens, d], the empty prompt last.
    """
    optimizer = torch.optim.AdamW(unet.parameters(), lr=lr, weight_decay=1e-3, betas=(0.9, 0.99))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    average = copy.deepcopy(unet).requires_grad_(False)
    curve: list[float] = []
    bar = tqdm(range(steps), desc="training the UNet", mininterval=10)
    for step in bar:
        index = torch.randint(len(latents), (batch_size,), generator=generator)
        flip = torch.randint(2, (batch_size,), generator=generator)
        batch = latents[index, flip].float()
        dropped = torch.rand(batch_size, generator=generator) < caption_dropout
        context = text[torch.where(dropped, len(text) - 1, index)].float()
        timesteps, noise = draw_noise(batch, schedule.n_timesteps, generator)
        loss = denoising_loss(unet, schedule, batch, context, timesteps, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        decay = min(ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - decay)
        curve.append(loss.item())
        bar.set_postfix(loss=f"{sum(curve[-100:]) / len(curve[-100:]):.4f}")
    return average, curve
