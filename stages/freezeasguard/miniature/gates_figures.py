"""Gates of the drawn figures: the recogniser, the VAE, prompt following, and whether adaptation can be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from freezeasguard.data.embedded.drawn_people import caption, draw_pose, famous_figures, other_figures, render_figure
from freezeasguard.miniature.gates import Gate
from freezeasguard.miniature.train_vae import to_tensor
from freezeasguard.models.diffusion import (
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
from freezeasguard.models.latents import LatentSet
from freezeasguard.models.sampling import sample, starting_noise
from freezeasguard.scores.networks.clip import ClipFeatures
from freezeasguard.scores.networks.recogniser import Recogniser, identity_distance, pair_auc
from freezeasguard.settings.users import Finetuning
from freezeasguard.users.training import finetune

GUIDANCE = 3.0
ADAPTATION_STEPS = 200


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


def figure_gates(model: Path, scorers: Path) -> list[Gate]:
    """The recogniser on figures it never saw, before and after the VAE."""
    recogniser = Recogniser.load(scorers)
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


def prompt_gates(model: Path, scorers: Path, n: int = 48) -> list[Gate]:
    """Whether CLIP finds the prompt of a generated image among `n`."""
    rng = np.random.default_rng(12)
    prompts = [caption(f.described(), draw_pose(rng)) for f in other_figures(n, seed=77)]
    clip = ClipFeatures(scorers / "clip")
    images = clip.images(generate_images(load_unet(model), model, prompts))
    texts = clip.texts(prompts)
    similarity = torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T
    hits = (similarity.argmax(1) == torch.arange(n)).float().mean()
    meaning = f"top-1 retrieval of the prompt among {n} (chance {1 / n:.3f})"
    return [Gate("prompt_retrieval", float(hits), 10 / n, True, meaning)]


def knowledge_gates(model: Path, scorers: Path, steps: int = ADAPTATION_STEPS) -> list[Gate]:
    """Before adaptation names mean nothing; after 200 steps on unseen figures the recogniser says so."""
    recogniser = Recogniser.load(scorers)
    images, captions, labels = drawn_figures(10, 4, seed=14)
    reference = recogniser.extract(to_tensor(images))[0]
    unet = load_unet(model)
    base = recogniser.extract(generate_images(unet, model, captions))[0]
    _adapt(unet, model, steps)
    adapted = recogniser.extract(generate_images(unet, model, captions))[0]

    # The next figure's image: what chance reads.
    assert not (labels == labels.roll(4)).any()
    own = identity_distance(base, reference)
    nearer = identity_distance(base, reference.roll(4, 0)) - own
    # Images of one figure are not independent: the standard error is taken over figures.
    fall = own - identity_distance(adapted, reference)
    falls = torch.stack([fall[labels == label].mean() for label in labels.unique()])
    z = falls.mean() / (falls.std() / len(falls) ** 0.5)
    meaning = f"fall of the recogniser's distance after {steps} steps of full fine-tuning on unseen figures"
    return [
        Gate("no_knowledge", float(nearer.mean()), 0.1, False, "how much nearer the base is to the named figure"),
        Gate("adaptation_gain", float(falls.mean()), 0.2, True, meaning),
        Gate("adaptation_gain_z", float(z), 3.0, True, "the same fall in standard errors"),
    ]


def _adapt(unet: torch.nn.Module, model: Path, steps: int) -> None:
    """Fine-tune in place on ten figures under test, 26 images each."""
    images, captions, _ = drawn_figures(10, 26, seed=13)
    config = Finetuning(steps=steps, batch_size=16, lr=5e-4)
    schedule = NoiseSchedule.of(load_scheduler(model))
    finetune(unet, schedule, latent_set(model, images, captions), config, generator=torch.Generator().manual_seed(0))
