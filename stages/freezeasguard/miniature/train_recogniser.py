"""Train the recogniser of drawn figures on figures that are nobody's test."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from freezeasguard.data.embedded.drawn_people import draw_pose, other_figures, render_figure
from freezeasguard.miniature.train_vae import to_tensor
from freezeasguard.scores.networks.recogniser import Recogniser


def training_figures(n_figures: int, images_each: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images [n, 64, 64, 3] and figure indices [n]."""
    rng = np.random.default_rng(seed)
    figures = other_figures(n_figures, seed)
    images = [
        np.asarray(render_figure(figure, draw_pose(rng)))
        for figure in tqdm(figures, desc="drawing figures")
        for _ in range(images_each)
    ]
    return np.stack(images), np.repeat(np.arange(n_figures), images_each)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flips, shifts, blur and noise: what a VAE and a sampler may do to a figure."""

    def chance() -> float:
        return torch.rand((), generator=generator).item()

    if chance() < 0.5:
        images = images.flip(3)
    shift = torch.randint(-3, 4, (2,), generator=generator).tolist()
    images = F.pad(images, (3, 3, 3, 3), mode="replicate").roll(shift, (2, 3))[..., 3:-3, 3:-3]
    if chance() < 0.6:
        small = int(torch.randint(28, 60, (), generator=generator))
        images = F.interpolate(images, size=small, mode="bilinear", antialias=True)
        images = F.interpolate(images, size=64, mode="bilinear")
    noise = torch.randn(images.shape, generator=generator) * 0.15 * chance()
    return ((images + noise) * (0.85 + 0.3 * chance())).clamp(-1, 1)


def train_recogniser(
    model: Recogniser,
    images: np.ndarray,
    figures: np.ndarray,
    not_figures: np.ndarray,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    scale: float = 16.0,
    margin: float = 0.2,
) -> list[float]:
    """Cosine softmax with an additive margin (CosFace) over figures, and presence by cross entropy."""
    n_figures = int(figures.max()) + 1
    dimension = model.embed.out_features
    weights = nn.Parameter(torch.randn(n_figures, dimension, generator=generator) * 0.1)
    optimizer = torch.optim.AdamW([*model.parameters(), weights], lr=lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    curve: list[float] = []
    model.train()
    bar = tqdm(range(steps), desc="training the recogniser", mininterval=10)
    for _ in bar:
        index = torch.randint(len(images), (batch_size,), generator=generator).numpy()
        other = torch.randint(len(not_figures), (batch_size // 4,), generator=generator).numpy()
        batch = augment(to_tensor(np.concatenate([images[index], not_figures[other]])), generator)
        # Pure noise and flat colour are no figures either: broken generators produce them.
        blank = torch.rand(8, 3, 1, 1, generator=generator) * 2 - 1
        blank = blank + torch.randn(8, 3, 64, 64, generator=generator) * torch.rand(8, 1, 1, 1, generator=generator)
        embedding, presence = model(torch.cat([batch, blank.clamp(-1, 1)]))
        labels = torch.from_numpy(figures[index])
        cosine = embedding[:batch_size] @ F.normalize(weights, dim=1).T
        logits = scale * (cosine - margin * F.one_hot(labels, n_figures))
        present = torch.zeros(len(presence))
        present[:batch_size] = 1
        loss = F.cross_entropy(logits, labels) + F.binary_cross_entropy_with_logits(presence, present)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        curve.append(loss.item())
        bar.set_postfix(loss=f"{curve[-1]:.3f}")
    return curve
