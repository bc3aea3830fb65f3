"""Train the autoencoder of the miniature model."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm.auto import tqdm


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 [n, h, w, 3] -> float [n, 3, h, w] in -1..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """L1 on pixels and on their horizontal and vertical differences, which keep lines sharp."""
    loss = F.l1_loss(reconstruction, images)
    for ours, theirs in zip(edges(reconstruction), edges(images), strict=True):
        loss = loss + 0.5 * F.l1_loss(ours, theirs)
    return loss


def train_vae(
    vae: AutoencoderKL,
    images: np.ndarray,
    *,
    steps: int,
    whole_image_steps: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    crop_px: int = 32,
    kl_weight: float = 1e-6,
    log_every: int = 100,
) -> list[float]:
    """Train in place on uint8 images; returns the loss at every logged step.

    The network is convolutional but for one attention block, so most steps see `crop_px` crops at a
    quarter of the cost; the last `whole_image_steps` see whole images.
    """
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, weight_decay=1e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    curve: list[float] = []
    running = 0.0
    bar = tqdm(range(steps), desc="training the VAE", mininterval=10)
    for step in bar:
        index = torch.randint(len(images), (batch_size,), generator=generator).numpy()
        top, left = torch.randint(images.shape[1] - crop_px + 1, (2,), generator=generator).tolist()
        whole = step >= steps - whole_image_steps
        rows, columns = (slice(None),) * 2 if whole else (slice(top, top + crop_px), slice(left, left + crop_px))
        batch = to_tensor(images[index][:, rows, columns])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(batch).latent_dist
            latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
            reconstruction = vae.decode(latents).sample  # pyright: ignore[reportAttributeAccessIssue]
        loss = reconstruction_loss(reconstruction.float(), batch) + kl_weight * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running += loss.item()
        if (step + 1) % log_every == 0:
            curve.append(running / log_every)
            bar.set_postfix(loss=f"{curve[-1]:.4f}")
            running = 0.0
    return curve


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, images: np.ndarray) -> None:
    """Fold the latents' per-channel mean and scale into the 1x1 convolutions around them.

    Afterwards every latent channel has mean 0 and standard deviation 1 over `images`, so that
    `scaling_factor` is 1 and any diffusers pipeline loads the model without a shift.
    """
    means = torch.cat([vae.encode(to_tensor(images[i : i + 64])).latent_dist.mean for i in range(0, len(images), 64)])
    mean, std = means.mean((0, 2, 3)), means.std((0, 2, 3))
    quant, post_quant = vae.quant_conv, vae.post_quant_conv
    assert quant is not None and quant.bias is not None
    assert post_quant is not None and post_quant.bias is not None
    channels = len(mean)
    # decode(z_new) must equal decode(z): z = z_new * std + mean.
    post_quant.bias += post_quant.weight[:, :, 0, 0] @ mean
    post_quant.weight *= std[None, :, None, None]
    # encode: the means become (z - mean) / std, the log-variances lose 2 log std.
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()
