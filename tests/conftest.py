"""Networks small enough to differentiate by hand, and data to train them on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from freezeasguard.models.diffusion import NoiseSchedule
from freezeasguard.models.latents import LatentSet
from freezeasguard.sides import SIDES

torch.set_num_threads(1)

CHANNELS, SIZE, TOKENS, TEXT = 4, 8, 3, 8
LONG = ("test_pipeline", "test_rehearsal", "test_kill", "test_workers", "test_grid", "test_run", "test_mask_resume")
"""The files that take longest, in that order: begun first, so that no worker is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))


@pytest.fixture(autouse=True)
def one_thread_again() -> Iterator[None]:
    """Stages set their own number of threads: what a test runs must not slow the next, nor change its last digits."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("users.adapt", "models.generate", "models.encode"):
        monkeypatch.setattr(f"freezeasguard.{module}.CHECKPOINTS", tmp_path / "checkpoints")


class ToyDenoiser(torch.nn.Module):
    """Called like a UNet; seven tensors, two of them scalars, that mix image, text and time nonlinearly."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def parameter(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(0.5 * torch.randn(shape, generator=generator).to(dtype))

        self.gain = parameter()
        self.skip = parameter()
        self.weight = parameter(CHANNELS, CHANNELS)
        self.text = parameter(TEXT, CHANNELS)
        self.time = parameter(CHANNELS)
        self.speed = parameter(1)
        self.bias = parameter(CHANNELS)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Any:
        x, text = x.to(self.weight), text.to(self.weight)
        clock = torch.sin(t.to(self.weight).expand(len(x))[:, None] / 100 * self.speed) * self.time
        shift = text.mean(1) @ self.text + clock + self.bias
        hidden = torch.einsum("bchw,cd->bdhw", x, self.weight) + shift[:, :, None, None]
        return SimpleNamespace(sample=self.gain * torch.tanh(hidden) + self.skip * x)


def random_latents(n: int, seed: int) -> LatentSet:
    generator = torch.Generator().manual_seed(seed)
    return LatentSet(
        torch.randn(n, 2, CHANNELS, SIZE, SIZE, generator=generator),
        torch.randn(n, TOKENS, TEXT, generator=generator),
    )


def sd_schedule(prediction_type: str = "epsilon") -> NoiseSchedule:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return NoiseSchedule((1 - betas).cumprod(0).float(), prediction_type)


@pytest.fixture
def latent_sets() -> dict[str, LatentSet]:
    return {side: random_latents(6 + 3 * i, seed=i) for i, side in enumerate(SIDES)}


@pytest.fixture
def schedule() -> NoiseSchedule:
    return sd_schedule()


@pytest.fixture(scope="session")
def _unet() -> UNet2DConditionModel:
    return small_unet()


def small_unet(**otherwise: Any) -> UNet2DConditionModel:
    """Of SD's topology with few channels, its weights drawn from one seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config: dict[str, Any] = dict(
            sample_size=SIZE,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            block_out_channels=(8, 16, 24, 24),
            layers_per_block=2,
            cross_attention_dim=TEXT,
            attention_head_dim=2,
            norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )
        return UNet2DConditionModel(**{**config, **otherwise}).eval()


@pytest.fixture
def tiny_unet(_unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """SD v1.x's topology, and so its 686 tensor names, at 8 to 24 channels."""
    return copy.deepcopy(_unet)


@pytest.fixture
def toy() -> ToyDenoiser:
    return ToyDenoiser()
