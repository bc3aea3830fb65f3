"""Speed as ratios of one run: ours against the loops that others publish, into reports/speed.

    pytest -m benchmark -s tests/benchmarks/test_speed.py

Both sides of a ratio take turns, so that what else the machine does meets both; a ratio is the median of the rounds'
ratios, with the quartiles. On a CPU: one thread. Nothing is asserted about time.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from freezeasguard.costs import AllocatedBytes
from freezeasguard.masks.bilevel import MaskLearner
from freezeasguard.models.diffusion import (
    NoiseSchedule,
    decode_latents,
    encode_text,
    load_scheduler,
    load_text,
    load_unet,
    load_vae,
    named_tensors,
    tokenize,
)
from freezeasguard.models.latents import LatentSet
from freezeasguard.models.sampling import sample, starting_noise
from freezeasguard.reports.rendering import write_table
from freezeasguard.settings.compute import Compute
from freezeasguard.settings.mask import Mask
from freezeasguard.settings.users import Finetuning
from freezeasguard.sides import SIDES
from freezeasguard.users.training import finetune
from freezeasguard.warm import SWITCH

pytestmark = pytest.mark.benchmark
ROOT = Path(__file__).parents[2]
MODEL = ROOT / "data/models/tiny-1.5"
ROUNDS, BATCH = 7, 8
PROMPTS = [f"a drawing of a person, {colour} background" for colour in ("white", "blue", "red", "gray")] * 4

Row = list[str]


@pytest.fixture(scope="module")
def table() -> Iterator[list[Row]]:
    """What the tests measured, written when all are through."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    yield rows
    path = write_table(
        ROOT / "reports" / "speed" / "speed",
        "Speed, as ratios of one run",
        ["What", "against", "Ratio", "Quartiles", "Aim"],
        rows,
        [
            f"{MODEL.name}, batch {BATCH}, one thread, {ROUNDS} rounds in turns, on {platform.processor() or 'a CPU'} "
            f"({os.cpu_count()} cores), torch {torch.__version__}. Below 1: ours takes less.",
            "Made by `pytest -m benchmark -s tests/benchmarks/test_speed.py`; no GPU was measured.",
        ],
    )
    print(f"\n{path.read_text()}")


def in_turns(ours: Callable[[], Any], theirs: Callable[[], Any]) -> np.ndarray:
    """Ours over theirs, a ratio a round, after one round that warms up."""

    def seconds(work: Callable[[], Any]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return np.array([seconds(ours) / seconds(theirs) for _ in range(ROUNDS + 1)])[1:]


def told(what: str, against: str, ratios: np.ndarray, aim: str) -> Row:
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return [what, against, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", aim]


def latents(n: int = 16, seed: int = 0) -> LatentSet:
    draw = torch.Generator().manual_seed(seed)
    return LatentSet(torch.randn(n, 2, 8, 16, 16, generator=draw), torch.randn(n, 48, 96, generator=draw))


def schedule() -> NoiseSchedule:
    return NoiseSchedule.of(load_scheduler(MODEL))


def user(rho: float, steps: int = 4) -> Callable[[], Any]:
    """A user under a random mask of rho."""
    unet, data, noise = load_unet(MODEL), latents(), schedule()
    names = sorted(named_tensors(unet))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    frozen = {names[i] for i in order[: round(rho * len(names))]}
    config = Finetuning(steps=steps, batch_size=BATCH, lr=1e-5)
    return lambda: finetune(unet, noise, data, config, frozen=frozen, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("rho", "aim"), [(0.3, "<= 0.85"), (0.5, ""), (0.8, "<= 0.70")])
def test_adaptation_over_rho(rho: float, aim: str, table: list[Row]) -> None:
    table.append(told(f"user's steps, rho {rho:g}", "rho 0", in_turns(user(rho), user(0)), aim))


def diffusers_trainer(steps: int = 4) -> Callable[[], Any]:
    """The step of diffusers' examples/text_to_image/train_text_to_image.py, which encodes its batch every time."""
    unet, vae, noise = load_unet(MODEL).train(), load_vae(MODEL), load_scheduler(MODEL)
    tokenizer, encoder = load_text(MODEL)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5)
    draw = torch.Generator().manual_seed(0)
    pixels = torch.rand(BATCH, 3, 64, 64, generator=draw) * 2 - 1
    ids = tokenize(tokenizer, PROMPTS[:BATCH])[0]

    def train() -> None:
        for _ in range(steps):
            x: Any = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor  # pyright: ignore
            epsilon = torch.randn_like(x)
            t: Any = torch.randint(0, noise.config.num_train_timesteps, (BATCH,)).long()
            noisy = noise.add_noise(x, epsilon, t).contiguous()
            words = encoder(ids, return_dict=False)[0]
            loss = torch.nn.functional.mse_loss(unet(noisy, t, words, return_dict=False)[0].float(), epsilon)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return train


def test_adaptation_against_diffusers_trainer(table: list[Row]) -> None:
    table.append(told("user's steps, rho 0", "diffusers' trainer", in_turns(user(0), diffusers_trainer()), "<= 0.75"))


CYCLE = Mask.model_validate({"preset": "official", "precision": "float32", "mask_steps": 1, "batch_size": 2 * BATCH})


MICRO_BATCHES = pytest.mark.parametrize(
    ("what", "micro_batch"),
    [("", None), (f", {BATCH} images at a time", BATCH), (f", {BATCH // 2} at a time", BATCH // 2)],
)


def our_cycle(micro_batch: int | None = None) -> Callable[[], Any]:
    """One mask step and four user steps of the authors' reading, in float32."""
    unet = load_unet(MODEL)
    finetuned = {name: p.detach() + 1e-3 for name, p in named_tensors(unet).items()}
    data = {side: latents(seed=i) for i, side in enumerate(SIDES)}
    compute, draw = Compute(micro_batch_size=micro_batch), torch.Generator().manual_seed(0)
    return MaskLearner(unet, schedule(), data, {SIDES: finetuned}, CYCLE, 0.3, draw, compute)._round


def published_cycle() -> Callable[[], Any]:
    """The same cycle as the authors publish it: whole gradients, kept copies, a Python loop over tensors."""
    unet, noise, generator = load_unet(MODEL), schedule(), torch.Generator().manual_seed(0)
    weights: dict[str, Any] = named_tensors(unet)
    delta = {name: torch.full_like(p, -1e-3) for name, p in weights.items()}
    logits = {name: torch.rand((), generator=generator) for name in weights}
    data = {side: latents(seed=i) for i, side in enumerate(SIDES)}

    def losses() -> list[torch.Tensor]:
        parts = [data[side].sample(BATCH, generator) for side in SIDES]
        x, words = (torch.cat(both) for both in zip(*parts, strict=True))
        epsilon, t = torch.randn(x.shape, generator=generator), torch.randint(1000, (len(x),), generator=generator)
        error = (unet(noise.add_noise(x, epsilon, t).contiguous(), t, words).sample - epsilon).square()
        return list(error.flatten(1).mean(1).split(BATCH))

    def mask() -> dict[str, torch.Tensor]:
        return {name: torch.sigmoid(w / CYCLE.temperature) for name, w in logits.items()}

    def cycle() -> None:
        for step in range(1 + CYCLE.user_steps):
            unet.zero_grad()
            illegal, legal = (loss.mean() for loss in losses())
            (legal / 2 - illegal / 2 if step == 0 else legal / 2 + illegal / 2).backward()
            m = mask()
            share = sum(m.values()) / len(m) - 0.3
            with torch.no_grad():
                for name, p in weights.items():
                    if step:
                        move = CYCLE.user_lr * p.grad * (1 - m[name])
                        delta[name] += move
                        p.data -= move * (1 - m[name])
                        continue
                    slope = m[name] * (1 - m[name]) / CYCLE.temperature
                    task = CYCLE.mask_lr * (p.grad * delta[name]).sum() * slope
                    logits[name] = logits[name] - task - CYCLE.sparsity_weight * 2 * share * slope / len(m)
                    p.data += (torch.sigmoid(logits[name] / CYCLE.temperature) - m[name]) * delta[name]

    return cycle


@MICRO_BATCHES
def test_mask_cycle_against_the_published_loop(what: str, micro_batch: int | None, table: list[Row]) -> None:
    ratios = in_turns(our_cycle(micro_batch), published_cycle())
    table.append(told(f"mask cycle, a mask step and four user steps{what}", "published loop", ratios, "<= 0.67"))


def peak_bytes(cycle: Callable[[], Any]) -> int:
    """The most that a cycle's tensors take at once, the model's among them; of the second, when all state is there."""
    cycle()
    with AllocatedBytes() as watch:
        cycle()
    return watch.peak


@MICRO_BATCHES
def test_peak_memory_of_the_mask_cycle(what: str, micro_batch: int | None, table: list[Row]) -> None:
    ratio = peak_bytes(our_cycle(micro_batch)) / peak_bytes(published_cycle())
    table.append([f"mask cycle, peak memory of its tensors{what}", "published loop", f"{ratio:.2f}", "", "<= 0.75"])


def test_generation_against_the_pipeline_prompt_by_prompt(table: list[Row]) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(MODEL, safety_checker=None, feature_extractor=None)
    pipeline.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": 5, "guidance_scale": 3.0}
    unet, vae, scheduler = load_unet(MODEL), load_vae(MODEL), load_scheduler(MODEL)
    tokenizer, encoder = load_text(MODEL)

    def ours() -> None:
        words = encode_text(encoder, tokenize(tokenizer, [*PROMPTS, ""])[0])
        noise = starting_noise(PROMPTS, list(range(len(PROMPTS))), (8, 16, 16), 0)
        decode_latents(vae, sample(unet, scheduler, noise, words[:-1], words[-1], steps=5, guidance_scale=3.0))

    def theirs() -> None:
        for prompt in PROMPTS:
            pipeline(prompt, output_type="np", **how)

    ratios = in_turns(ours, theirs)
    table.append(told(f"generation of {len(PROMPTS)} prompts", "the pipeline, prompt by prompt", ratios, "<= 0.50"))


NO_TORCH, TORCH = [sys.executable, "-m", "stages.split", "--help"], [sys.executable, "-m", "stages.adapt", "--help"]
BY_DVC = {"DVC_STAGE": "adapt", SWITCH: "1"}


@pytest.mark.parametrize(
    ("what", "command", "environment", "aim"),
    [
        ("start of a stage without a network", NO_TORCH, {}, "<= 1 s"),
        ("start of one with torch, on its own", TORCH, {SWITCH: "0"}, "<= 3 s"),
        ("start of one with torch, by DVC, after another", TORCH, BY_DVC, "<= 3 s"),
    ],
)
def test_start(what: str, command: list[str], environment: dict[str, str], aim: str, table: list[Row]) -> None:
    def start() -> float:
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, **environment})
        return time.perf_counter() - began

    start()  # by DVC it leaves the server behind, which is at work once the packages are imported
    time.sleep(15 if "DVC_STAGE" in environment else 0)
    seconds = np.array([start() for _ in range(ROUNDS)])
    low, middle, high = np.percentile(seconds, (25, 50, 75))
    table.append([what, "-", f"{middle:.2f} s", f"{low:.2f} to {high:.2f}", aim])
