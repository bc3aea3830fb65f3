"""The recipe of the miniature model and its scorers: about two CPU-hours, resumable part by part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from freezeasguard.files import folder_atomically
from freezeasguard.miniature.architecture import new_clip, new_scheduler, new_unet, new_vae, train_tokenizer
from freezeasguard.miniature.corpus import PHOTOGRAPH_COPIES, Corpus, build_corpus, generic_photographs
from freezeasguard.miniature.train_clip import train_clip
from freezeasguard.miniature.train_recogniser import train_recogniser, training_figures
from freezeasguard.miniature.train_style import train_style
from freezeasguard.miniature.train_unet import train_unet
from freezeasguard.miniature.train_vae import standardise_latents, to_tensor, train_vae
from freezeasguard.models.diffusion import NoiseSchedule, encode_text, tokenize
from freezeasguard.scores.networks.recogniser import Recogniser
from freezeasguard.scores.networks.style import STYLE_FILE

STEPS = {"vae": 8000, "recogniser": 1500, "clip": 1500, "drawings": 6000, "unet": 2000}


def part_of_recipe(work: Path, name: str, make: Callable[[Path], None]) -> Path:
    """The part's folder under `work`, made if it is not there: a killed recipe goes on where it was."""
    folder = work / name
    if not folder.is_dir():
        torch.manual_seed(0)  # the weights' initialisation; batches and noise have generators of their own
        with folder_atomically(folder) as temporary:
            make(temporary)
    return folder


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run_recipe(work: Path, steps: dict[str, int] | None = None, corpus: Corpus | None = None) -> None:
    """Train every part into `work`: tokenizer, vae, recogniser, style, clip, drawings (a UNet), unet."""
    steps = steps or STEPS
    corpus = corpus or build_corpus()
    images, captions = corpus.images, corpus.captions

    def make_vae(folder: Path) -> None:
        vae, generator = new_vae(), seeded()
        whole = max(1, steps["vae"] // 20)
        train_vae(vae, images, steps=steps["vae"], whole_image_steps=whole, batch_size=16, lr=2e-3, generator=generator)
        standardise_latents(vae, images[np.random.default_rng(0).permutation(len(images))[:1024]])
        vae.save_pretrained(folder)

    def make_recogniser(folder: Path) -> None:
        drawn, figures = training_figures(1200, 12, seed=2)
        torch.manual_seed(0)
        model, other = Recogniser(), images[corpus.figure < 0]
        train_recogniser(
            model, drawn, figures, other, steps=steps["recogniser"], batch_size=64, lr=2e-3, generator=seeded()
        )
        model.save(folder)

    def make_style(folder: Path) -> None:
        train_style(AutoencoderKL.from_pretrained(vae_folder).eval(), folder, seed=3)

    def make_clip(folder: Path) -> None:
        tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
        clip = new_clip(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
        train_clip(clip, tokenizer, images, captions, steps=steps["clip"], batch_size=96, lr=1e-3, generator=seeded())
        clip.save_pretrained(folder)

    tokenizer_folder = part_of_recipe(work, "tokenizer", lambda f: _save_tokenizer(captions, f))
    vae_folder = part_of_recipe(work, "vae", make_vae)
    part_of_recipe(work, "recogniser", make_recogniser)
    part_of_recipe(work, "style", make_style)
    clip_folder = part_of_recipe(work, "clip", make_clip)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    vae, tower = AutoencoderKL.from_pretrained(vae_folder).eval(), text_tower(CLIPModel.from_pretrained(clip_folder))
    schedule = NoiseSchedule.of(new_scheduler())
    train_unets(work, corpus, vae, tokenizer, tower, schedule, steps["drawings"], steps["unet"])


def train_unets(
    work: Path,
    corpus: Corpus,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    tower: CLIPTextModel,
    schedule: NoiseSchedule,
    drawings: int,
    photographs: int,
    **of_unet: Any,
) -> None:
    """The parts `drawings` and `unet`: a UNet trained on drawings, and on from it with photographs of faces among them.

    Args:
        drawings, photographs: steps of the one and of the other; of_unet: what the UNet has otherwise.
    """

    def encoded(images: np.ndarray, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of both flips and text embeddings, in half precision; the empty prompt last."""
        ids, _ = tokenize(tokenizer, [*captions, ""])
        return encode_both_flips(vae, images), encode_text(tower.eval(), ids).half()

    def train_and_save(folder: Path, unet: UNet2DConditionModel, *data: torch.Tensor, **how: Any) -> None:
        average, curve = train_unet(unet, schedule, *data, batch_size=32, **how)
        average.save_pretrained(folder)
        (folder / "curve.json").write_text(json.dumps(curve))

    def make_drawings(folder: Path) -> None:
        data = encoded(corpus.images, corpus.captions)
        torch.manual_seed(0)
        train_and_save(folder, new_unet(**of_unet), *data, steps=drawings, lr=1.5e-3, generator=seeded())

    def make_unet(folder: Path) -> None:
        latents, text = encoded(corpus.images, corpus.captions)
        of_faces, told = encoded(*generic_photographs())
        latents = torch.cat([latents, of_faces.repeat(PHOTOGRAPH_COPIES, 1, 1, 1, 1)])
        text = torch.cat([text[:-1], told[:-1].repeat(PHOTOGRAPH_COPIES, 1, 1), text[-1:]])
        unet = UNet2DConditionModel.from_pretrained(drawings_folder)
        train_and_save(folder, unet, latents, text, steps=photographs, lr=1e-3, generator=seeded(1))

    drawings_folder = part_of_recipe(work, "drawings", make_drawings)
    part_of_recipe(work, "unet", make_unet)


def _save_tokenizer(captions: list[str], folder: Path) -> None:
    train_tokenizer(captions).save_pretrained(folder)


@torch.no_grad()
def encode_both_flips(vae: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    """Latents [n, 2, c, h, w] in half precision."""
    parts = []
    for start in range(0, len(images), 64):
        batch = to_tensor(images[start : start + 64])
        with torch.autocast("cpu", torch.bfloat16):
            both = [vae.encode(x).latent_dist.mean.half() for x in (batch, batch.flip(3))]
        parts.append(torch.stack(both, 1))
    return torch.cat(parts)


def text_tower(clip: CLIPModel) -> CLIPTextModel:
    """CLIP's text tower as the model that a pipeline loads."""
    tower = CLIPTextModel(clip.config.text_config).eval()
    own = tower.state_dict()
    theirs = clip.text_model.state_dict()
    tower.load_state_dict({name: theirs[name.removeprefix("text_model.")] for name in own})
    return tower


def assemble(work: Path, model: Path, scorers: Path) -> None:
    """Put the parts together: a diffusers folder for any pipeline, and the scorers; weights in fp16."""
    clip = CLIPModel.from_pretrained(work / "clip")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    with folder_atomically(model) as out:
        AutoencoderKL.from_pretrained(work / "vae").half().save_pretrained(out / "vae")
        UNet2DConditionModel.from_pretrained(work / "unet").half().save_pretrained(out / "unet")
        # In float32: transformers loads in the stored precision, diffusers always in float32.
        text_tower(clip).save_pretrained(out / "text_encoder")
        tokenizer.save_pretrained(out / "tokenizer")
        new_scheduler().save_pretrained(out / "scheduler")
        index: dict[str, Any] = {
            "_class_name": "StableDiffusionPipeline",
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "scheduler": ["diffusers", "PNDMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    with folder_atomically(scorers) as out:
        clip.half().save_pretrained(out / "clip")
        tokenizer.save_pretrained(out / "clip")
        Recogniser.load(work / "recogniser").save(out)
        shutil.copyfile(work / "style" / STYLE_FILE, out / STYLE_FILE)
