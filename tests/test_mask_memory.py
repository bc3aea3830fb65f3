"""What mask learning keeps in memory, on the device and on the host: counted, and counted again while it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from conftest import SIZE, TEXT, TOKENS
from freezeasguard.costs import AllocatedBytes, Meter
from freezeasguard.masks import bilevel, mask
from freezeasguard.masks.bilevel import MaskLearner
from freezeasguard.masks.memory import activation_bytes, learning_bytes
from freezeasguard.masks.simulated_user import GradientStream, SimulatedUser
from freezeasguard.models import computing
from freezeasguard.models.computing import autocast, prepare
from freezeasguard.models.diffusion import NoiseSchedule, denoising_loss
from freezeasguard.models.latents import LatentSet
from freezeasguard.settings.compute import Compute
from freezeasguard.settings.mask import Mask
from freezeasguard.sides import SIDES
from test_bilevel import mask_config, moved, sides_of, weights_of

GIB = 2**30


def learner_of(unet: Any, schedule: NoiseSchedule, data: dict[str, LatentSet], config: Mask, compute: Compute) -> Any:
    finetuned = {sides: moved(weights_of(unet), i, by=0.01) for i, sides in enumerate(sides_of(config.users))}
    return MaskLearner(unet, schedule, data, finetuned, config, 0.3, torch.Generator().manual_seed(0), compute)


def activations_of_an_image(unet: Any, compute: Compute, size: int, text: tuple[int, int], n: int = 2) -> int:
    """Bytes at most, beside weights, half-precision weights and gradients, of a forward and a backward pass."""
    x, words = torch.empty(n, 4, size, size), torch.empty(n, *text)
    handles = [p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None)) for p in unet.parameters()]
    largest = max(p.nbytes for p in unet.parameters())
    cast = 2 * sum(p.numel() for p in unet.parameters()) if compute.precision == "bfloat16" else 0
    with AllocatedBytes() as allocated:
        with autocast(compute, "cpu"):
            loss = unet(x, torch.zeros(n, dtype=torch.long), words).sample.float().square().mean()
        loss.backward()
    for handle in handles:
        handle.remove()
    return max(0, allocated._most - cast - largest) // n


VARIANTS: list[tuple[dict[str, Any], Compute]] = [
    ({}, Compute()),
    ({}, Compute(micro_batch_size=1, gradient_checkpointing=True)),
    ({"users": "joint", "user_optimizer": "sgd", "precision": "bfloat16"}, Compute()),
    ({"granularity": "element"}, Compute(users_on_host=True, micro_batch_size=2)),
]


@pytest.fixture
def small_unet() -> Any:
    return UNet2DConditionModel(
        sample_size=SIZE,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=TEXT,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).train()


@pytest.mark.parametrize(("changes", "compute"), VARIANTS, ids=str)
def test_what_is_counted_is_what_a_run_allocates(
    changes: dict[str, Any],
    compute: Compute,
    small_unet: Any,
    monkeypatch: pytest.MonkeyPatch,
    schedule: NoiseSchedule,
    latent_sets: dict[str, LatentSet],
) -> None:
    for module in (mask, bilevel):  # far less than the network, as it is at scale
        monkeypatch.setattr(module, "CHUNK", 2**12)
    config = mask_config("freezeasguard", batch_size=8, mask_batch_size=4, user_lr=1e-4, **changes)
    shapes = {name: list(p.shape) for name, p in small_unet.named_parameters()}
    prepare(small_unet, compute)
    activations = activations_of_an_image(small_unet, compute, SIZE, (TOKENS, TEXT))
    counted = learning_bytes(shapes, config, compute, activations)
    learner = learner_of(small_unet, schedule, latent_sets, config, compute)
    for user in learner.users:
        learner.user_step(user)  # AdamW's moments exist from here on
    kept = [[user.mixed, user.delta, *user.moments] for user in learner.users]
    held = [sum(t.nbytes for tensors in user for t in tensors.values()) for user in kept]
    assert counted["users"] == (held[-1] if compute.users_on_host else sum(held))
    assert counted["users"] + counted["host"] == sum(held)
    with AllocatedBytes() as allocated:
        learner.user_step(learner.users[-1])
        in_user_step = allocated._most
        learner.mask_step()
    beside = counted["device"] - counted["users"]
    assert in_user_step <= allocated._most <= beside * 1.02 + 2**17  # batches, losses
    assert allocated._most > 0.4 * beside


def test_what_is_counted_follows_each_parameter() -> None:
    shapes = {"a": (1000, 1000), "b": (10,)}

    def device(compute: Compute, **changes: Any) -> int:
        return learning_bytes(shapes, mask_config("freezeasguard", **changes), compute, 10**6)["device"]

    plain = Compute()
    whole = device(plain, batch_size=16)
    assert device(Compute(users_on_host=True), batch_size=16) == whole - 16 * 1_000_010
    assert device(Compute(micro_batch_size=2), batch_size=16) == whole - 6 * 10**6
    assert device(plain, batch_size=16, granularity="element") == whole + 24 * 1_000_010
    assert device(plain, batch_size=16, user_optimizer="sgd") < whole


@pytest.mark.large
def test_sd15_learns_its_mask_within_24_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 512 px, by the default preset, on tensors without values: sizes alone."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(computing, "LOW_PRECISION", frozenset({"cpu"}))
    config = Mask.model_validate({"preset": "freezeasguard", "user_lr": 1e-5})
    small = dict(precision="bfloat16", gradient_checkpointing=True, micro_batch_size=2)
    variants = [Compute(), *(Compute.model_validate({**small, "users_on_host": host}) for host in (False, True))]
    variants.insert(1, Compute(precision="bfloat16"))
    variants.insert(2, Compute(gradient_checkpointing=True, users_on_host=True))
    peaks = []
    print("\nSD v1.5, 512 px, preset freezeasguard, GiB")
    for compute in variants:
        with FakeTensorMode():
            unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).train()
            prepare(unet, compute)
            shapes = {name: list(p.shape) for name, p in unet.named_parameters()}
            measured = activations_of_an_image(unet, compute, 64, (77, 768))
            said = activation_bytes((64, 64), compute)
            assert 0.85 * said < measured < 1.02 * said
            counted = learning_bytes(shapes, config, compute, said)
            peak = peak_of_a_user_step(unet, compute, config, n_awake=1 if compute.users_on_host else 2)
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in counted.items())
        print(f"{compute.model_dump(exclude_defaults=True)}: {parts}; a step allocates {peak / GIB:.1f}")
        assert 0.8 * counted["device"] < peak <= counted["device"]
        peaks.append(peak)
    assert peaks[-1] < 24 * GIB < peaks[0]


@pytest.mark.large
@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures a GPU's memory: run it where there is one")
def test_sd15_learns_its_mask_within_24_gib_of_a_gpu() -> None:
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).train().cuda()
    draw = torch.Generator().manual_seed(0)
    data = {
        side: LatentSet(torch.randn(8, 2, 4, 64, 64, generator=draw), torch.randn(8, 77, 768, generator=draw))
        for side in SIDES
    }
    small = dict(precision="bfloat16", gradient_checkpointing=True, micro_batch_size=2, users_on_host=True)
    compute, meter = Compute.model_validate(small), Meter("cuda")
    config = Mask.model_validate({"preset": "freezeasguard", "user_lr": 1e-5, "mask_steps": 3})
    schedule = NoiseSchedule(torch.linspace(0.999, 0.01, 1000))
    learner = MaskLearner(unet, schedule, data, {(side,): {} for side in SIDES}, config, 0.3, draw, compute)
    learner.learn(meter=meter)
    record = meter.record()
    print(f"\n{record}: {record['peak_bytes'] / GIB:.1f} GiB")
    assert record["peak_bytes"] < 24 * GIB


def peak_of_a_user_step(unet: Any, compute: Compute, config: Mask, n_awake: int) -> int:
    """Bytes at most in a step of AdamW with `n_awake` users on the device, through the learner's own parts."""
    parameters = dict(unet.named_parameters())
    held = [SimulatedUser((), *({n: torch.empty_like(p.data) for n, p in parameters.items()} for _ in "md"))]
    held[0].start_moments()
    user, n = held[0], config.batch_size // 2
    for name, parameter in parameters.items():
        parameter.data = user.mixed[name]
    user.n_steps = 1
    of_user = sum(t.nbytes for tensors in (user.mixed, user.delta, *user.moments) for t in tensors.values())
    size = compute.micro_batch_size or n
    schedule = NoiseSchedule(torch.empty(1000))
    batch = (torch.empty(size, 4, 64, 64), torch.empty(size, 77, 768), torch.zeros(size, dtype=torch.long))

    def update(names: list[str], gradients: list[torch.Tensor]) -> None:
        user.adamw_update(names, gradients, [0.7] * len(names), 1e-5)

    with AllocatedBytes() as allocated:
        for i in range(n // size):
            with autocast(compute, "cpu"):
                loss = denoising_loss(unet, schedule, *batch, torch.empty(size, 4, 64, 64)).mean()
            if i == n // size - 1:
                with GradientStream(parameters, update):
                    loss.backward()
            else:
                loss.backward()
            del loss
    return allocated._most + n_awake * of_user
