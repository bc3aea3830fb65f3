"""SD v1.5's UNet at its real size with random weights: memory, not quality. Run with `pytest -m large -s`."""

from __future__ import annotations

import resource

import pytest
import torch

from freezeasguard.masks.bilevel import MaskLearner
from freezeasguard.models.diffusion import NoiseSchedule
from freezeasguard.models.latents import LatentSet
from freezeasguard.settings.mask import Mask
from freezeasguard.settings.users import Finetuning
from freezeasguard.sides import SIDES
from freezeasguard.users.training import finetune

pytestmark = pytest.mark.large


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def test_sd15_goes_through_user_mask_and_adaptation_steps() -> None:
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(2)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    assert len(list(unet.parameters())) == 686
    generator = torch.Generator().manual_seed(0)
    data = {
        side: LatentSet(torch.randn(2, 2, 4, 64, 64, generator=generator), torch.randn(2, 77, 768, generator=generator))
        for side in SIDES
    }
    schedule = NoiseSchedule(torch.linspace(0.999, 0.01, 1000))
    settings = Mask.model_validate({"preset": "paper", "user_steps": 2, "mask_steps": 1, "batch_size": 2})
    moved = {name: p.detach() + 1e-4 for name, p in unet.named_parameters() if name.startswith("mid_block")}
    learner = MaskLearner(unet, schedule, data, {SIDES: moved}, settings, 0.3, generator)
    learned = learner.learn()
    print(f"\npeak after two user steps and one mask step: {peak_gib():.1f} GiB")
    assert len(learned.frozen(0.3)) == 206
    del learner
    config = Finetuning(steps=1, batch_size=1, lr=1e-5)
    assert len(finetune(unet, schedule, data["illegal"], config, frozen=learned.frozen(0.3), generator=generator)) == 1
    print(f"peak after one adaptation step at rho 0.3: {peak_gib():.1f} GiB")
    assert peak_gib() < 20
