"""Fit the style score on drawings by none of the illustrators under test.

Blocks and shrinkage were chosen on twelve other people-like styles, leaving five of them out at a time:
blocks 7 and 14 gave a pair AUC of 0.970 on originals and 0.964 after the VAE, 7 and 15 gave 0.963 and
0.953. Directions of a discriminant analysis were worse (0.934), and so was cutting off small ones.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm.auto import tqdm

from freezeasguard.data.embedded.drawn_people import BACKGROUNDS, render_style, style_definition
from freezeasguard.data.embedded.illustrators import STYLES, artist
from freezeasguard.miniature.train_vae import to_tensor
from freezeasguard.models.diffusion import decode_latents, encode_images
from freezeasguard.scores.networks.style import block_statistics, save_style

DRAWINGS_EACH = 24
SHRINKAGE = 0.1
"""Share of the covariance that is replaced by its mean variance: there are hardly more drawings than directions."""
WRITTEN = {"initials", "initial-face"}
"""Styles that show letters, which look as the machine's fonts do."""


def generic_styles() -> list[str]:
    """Every style of the package by other hands than the illustrators under test, who drew more than one."""
    names = [path.stem for path in importlib.metadata.files("dicebear-styles") or () if path.suffix == ".json"]
    under_test = {artist(style) for style in STYLES}
    others = [name for name in names if "meta" in style_definition(name) and artist(name) not in under_test]
    return sorted(set(others) - WRITTEN)


def draw_styles(styles: list[str], n_each: int, seed: int) -> np.ndarray:
    """uint8 [styles * n, 64, 64, 3], on plain backgrounds: a background says nothing about a style."""
    rng = np.random.default_rng(seed)
    backgrounds = list(BACKGROUNDS.values())
    images = []
    for style in tqdm(styles, desc="drawing styles"):
        for index in range(n_each):
            background = backgrounds[int(rng.integers(len(backgrounds)))]
            options = {"seed": f"{style}-{seed}-{index}", "backgroundColor": [background]}
            images.append(np.asarray(render_style(style, options, 64)[0]))
    return np.stack(images)


def within_style_whitening(statistics: Tensor, styles: Tensor, shrinkage: float = SHRINKAGE) -> tuple[Tensor, Tensor]:
    """Centre, and the map that gives the differences between drawings of one style unit covariance.

    What varies within a style (who is drawn, the background, the VAE's blur) then counts as little as it
    should. The covariance S of the standardised statistics is shrunk, (1 - a) S + a tr(S) / d I.

    Args:
        statistics: [n, d]; styles: index of the style of each, [n], in 0 .. n_styles - 1 without gaps.
    Returns:
        mean [d]; whitening [d, d], to be multiplied from the right.
    """
    x = statistics.double()
    scale = x.std(0) + 1e-4  # a channel that is dead in all drawings stays finite
    standard = (x - x.mean(0)) / scale
    means = torch.stack([standard[styles == style].mean(0) for style in range(int(styles.max()) + 1)])
    within = standard - means[styles]
    covariance = within.T @ within / len(within)
    mean_variance = covariance.diagonal().mean()
    covariance = (1 - shrinkage) * covariance + shrinkage * mean_variance * torch.eye(len(covariance)).double()
    values, axes = torch.linalg.eigh(covariance)
    whitening = axes / values.sqrt() @ axes.T / scale[:, None]
    return x.mean(0).float(), whitening.float()


def train_style(vae: AutoencoderKL, folder: Path, n_each: int = DRAWINGS_EACH, *, seed: int) -> None:
    """Fit on drawings and their reconstructions alike, so that the VAE's traces are no style; write to `folder`."""
    names = generic_styles()
    images = to_tensor(draw_styles(names, n_each, seed))
    rebuilt = [decode_latents(vae, encode_images(vae, batch)) for batch in images.split(64)]
    statistics = [block_statistics(batch) for batch in tqdm([*images.split(64), *rebuilt], desc="looking at styles")]
    styles = torch.arange(len(names)).repeat_interleave(n_each).repeat(2)
    save_style(folder, *within_style_whitening(torch.cat(statistics), styles))
