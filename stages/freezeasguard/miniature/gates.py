"""Quality gates of the miniature model: what must hold before its numbers mean anything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freezeasguard.data.figures import caption, draw_pose, famous_figures, other_figures, render_figure
from freezeasguard.data.latents import LatentSet
from freezeasguard.diffusion import (
    NoiseSchedule,
    decode_latents,
    encode_images,
    encode_text,
    load_scheduler,
    load_text,
    load_unet,
    load_vae,
    tokenize,
)
from freezeasguard.files import read_json
from freezeasguard.metrics.clip import ClipFeatures
from freezeasguard.metrics.recogniser import Recogniser, identity_distance, pair_auc
from freezeasguard.miniature.train_vae import to_tensor
from freezeasguard.sampling import sample, starting_noise
from freezeasguard.training import FinetuneConfig, finetune

MODEL = Path("data/models/tiny-1.5")
SCORERS = Path("data/models/scorers")
GUIDANCE = 2.0


@dataclass(frozen=True)
class Gate:
    name: str
    value: float
    bound: float
    at_least: bool
    """True: value >= bound passes; False: value <= bound."""
    meaning: str

    @property
    def passed(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def drawn_figures(n_figures: int, images_each: int, seed: int) -> tuple[np.ndarray, list[str], Tensor]:
    """Images, captions and figure indices of the first figures under test."""
    rng = np.random.default_rng(seed)
    poses = [(f, draw_pose(rng)) for f in famous_figures()[:n_figures] for _ in range(images_each)]
    images = np.stack([np.asarray(render_figure(f, pose)) for f, pose in poses])
    labels = torch.arange(n_figures).repeat_interleave(images_each)
    return images, [caption(f.name, pose) for f, pose in poses], labels


def latent_set(model: Path, images: np.ndarray, captions: list[str]) -> LatentSet:
    """Images (uint8 [n, h, w, 3]) and captions as a user trains on them."""
    vae = load_vae(model)
    tokenizer, encoder = load_text(model)
    pixels = to_tensor(images)
    latents = torch.stack([encode_images(vae, pixels), encode_images(vae, pixels.flip(3))], 1)
    return LatentSet(latents, encode_text(encoder, tokenize(tokenizer, captions)[0]))


def generate_images(unet: torch.nn.Module, model: Path, prompts: list[str]) -> Tensor:
    """One image a prompt, as the pipeline's generate stage makes it."""
    tokenizer, encoder = load_text(model)
    ids, _ = tokenize(tokenizer, [*prompts, ""])
    text = encode_text(encoder, ids)
    noise = starting_noise(prompts, [0] * len(prompts), (8, 16, 16), seed=0)
    latents = [
        sample(unet, load_scheduler(model), n, t, text[-1], steps=50, guidance_scale=GUIDANCE)
        for n, t in zip(noise.split(32), text[:-1].split(32), strict=True)
    ]
    return decode_latents(load_vae(model), torch.cat(latents))


def vae_gate(model: Path, recogniser: Recogniser) -> list[Gate]:
    images, _, labels = drawn_figures(25, 8, seed=11)
    originals = to_tensor(images)
    vae = load_vae(model)
    rebuilt = decode_latents(vae, encode_images(vae, originals))
    before = pair_auc(recogniser.extract(originals)[0], labels)
    after = pair_auc(recogniser.extract(rebuilt)[0], labels)
    l1 = float((rebuilt - originals).abs().mean())
    return [
        Gate("recogniser_auc_unseen", before, 0.95, True, "AUC of the recogniser on figures it never saw"),
        Gate("vae_auc_ratio", after / before, 0.95, True, "AUC on the VAE's reconstructions over AUC on originals"),
        Gate("vae_l1", l1, 0.046, False, "L1 of reconstructions; a linear PCA of the same latent size reaches 0.046"),
    ]


def prompt_gate(unet: torch.nn.Module, model: Path, clip: ClipFeatures, n: int = 48) -> Gate:
    rng = np.random.default_rng(12)
    prompts = [caption(f.described(), draw_pose(rng)) for f in other_figures(n, seed=77)]
    images = clip.images(generate_images(unet, model, prompts))
    texts = clip.texts(prompts)
    similarity = torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T
    hits = (similarity.argmax(1) == torch.arange(n)).float().mean()
    return Gate(
        "prompt_retrieval", float(hits), 10 / n, True, f"top-1 retrieval of the prompt among {n} (chance {1 / n:.3f})"
    )


def knowledge_gates(model: Path, recogniser: Recogniser, steps: int = 200) -> list[Gate]:
    """Before adaptation names mean nothing; after 200 steps on unseen figures the recogniser says so."""
    images, captions, labels = drawn_figures(10, 26, seed=13)
    test_images, test_captions, test_labels = drawn_figures(10, 4, seed=14)
    reference = recogniser.extract(to_tensor(test_images))[0]

    def distances(unet: torch.nn.Module) -> tuple[Tensor, Tensor]:
        """To the named figure's own image, and to the next figure's: what chance reads."""
        generated = recogniser.extract(generate_images(unet, model, test_captions))[0]
        other = reference.roll(4, 0)
        assert not (test_labels == test_labels.roll(4)).any()
        return identity_distance(generated, reference), identity_distance(generated, other)

    unet = load_unet(model)
    own, other = distances(unet)
    config = FinetuneConfig(steps=steps, batch_size=16, lr=5e-4)
    schedule = NoiseSchedule.of(load_scheduler(model))
    finetune(unet, schedule, latent_set(model, images, captions), config, generator=torch.Generator().manual_seed(0))
    adapted, _ = distances(unet)
    # Images of one figure are not independent: the standard error is taken over figures.
    falls = torch.stack([(own - adapted)[test_labels == label].mean() for label in test_labels.unique()])
    error = falls.std() / len(falls) ** 0.5
    return [
        Gate(
            "no_knowledge", float((other - own).mean()), 0.1, False, "how much nearer the base is to the named figure"
        ),
        Gate(
            "adaptation_gain",
            float(falls.mean()),
            0.2,
            True,
            f"fall of the recogniser's distance after {steps} steps of full fine-tuning on unseen figures",
        ),
        Gate("adaptation_gain_z", float(falls.mean() / error), 3.0, True, "the same fall in standard errors"),
    ]


def measure_gates(model: Path = MODEL, scorers: Path = SCORERS) -> list[Gate]:
    recogniser, clip = Recogniser.load(scorers), ClipFeatures(scorers / "clip")
    unet = load_unet(model)
    return [
        *vae_gate(model, recogniser),
        prompt_gate(unet, model, clip),
        *knowledge_gates(model, recogniser),
    ]


def gates_to_json(gates: list[Gate]) -> list[dict[str, Any]]:
    return [{**asdict(gate), "passed": gate.passed} for gate in gates]


def read_gates(model: Path = MODEL) -> list[Gate]:
    rows = read_json(model / "gates.json", "run `dvc repro -f pretrain`")
    return [Gate(**{k: v for k, v in row.items() if k != "passed"}) for row in rows]


def format_gates(gates: list[Gate]) -> str:
    return "\n".join(
        f"{'pass' if g.passed else 'FAIL'}  {g.name:<22} {g.value:7.3f} {'>=' if g.at_least else '<='} {g.bound:.3f}  "
        f"{g.meaning}"
        for g in gates
    )
