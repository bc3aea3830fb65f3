"""The other models of the miniature family: an earlier checkpoint, and a v-prediction model with another text tower.

They mirror SD v1.4 and v2.1 beside v1.5: one autoencoder and one vocabulary in all three, the same corpus and loop, the
same 686 tensor names. As v2.1 does, tiny-2.1 has a wider text tower, linear projections around its attention, and heads
of one width at every resolution; its UNet predicts v.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from freezeasguard.files import folder_atomically
from freezeasguard.miniature.architecture import new_clip, new_scheduler
from freezeasguard.miniature.corpus import Corpus, build_corpus
from freezeasguard.miniature.recipe import part_of_recipe, seeded, text_tower, train_unets
from freezeasguard.miniature.train_clip import train_clip
from freezeasguard.models.diffusion import NoiseSchedule


@dataclass(frozen=True)
class Variant:
    """A model of the family, by how it departs from tiny-1.5."""

    drawings: int
    """Steps on drawings; tiny-1.5's UNet had 6,000, and 2,000 with photographs among them."""
    photographs: int
    prediction_type: str = "epsilon"
    text: Mapping[str, Any] = field(default_factory=dict)
    """Of its text tower; empty: tiny-1.5's own tower."""
    unet: Mapping[str, Any] = field(default_factory=dict)


FAMILY = {
    "tiny-1.4": Variant(drawings=2500, photographs=1000),
    "tiny-2.1": Variant(
        drawings=3500,
        photographs=1000,
        prediction_type="v_prediction",
        text={"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "hidden_act": "gelu"},
        unet={"cross_attention_dim": 128, "use_linear_projection": True, "attention_head_dim": (2, 4, 6, 6)},
    ),
}
CLIP_STEPS = 1500


def train_variant(
    name: str,
    base: Path,
    work: Path,
    corpus: Corpus | None = None,
    variant: Variant | None = None,
    clip_steps: int = CLIP_STEPS,
) -> None:
    """Train the parts that are the variant's own into `work`; a killed run goes on where it was.

    Args:
        base: the folder of tiny-1.5, whose autoencoder and vocabulary it shares.
    """
    variant = variant or FAMILY[name]
    corpus = corpus or build_corpus()
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    vae = AutoencoderKL.from_pretrained(base / "vae", torch_dtype=torch.float32).eval()
    schedule = NoiseSchedule.of(new_scheduler(variant.prediction_type))

    def make_clip(folder: Path) -> None:
        clip = new_clip(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, **variant.text)
        own = {"steps": clip_steps, "batch_size": 96, "lr": 1e-3, "generator": seeded()}
        train_clip(clip, tokenizer, corpus.images, corpus.captions, **own)
        text_tower(clip).save_pretrained(folder)

    if variant.text:
        tower = CLIPTextModel.from_pretrained(part_of_recipe(work, "text_encoder", make_clip))
    else:
        tower = CLIPTextModel.from_pretrained(base / "text_encoder")

    train_unets(work, corpus, vae, tokenizer, tower, schedule, variant.drawings, variant.photographs, **variant.unet)


def assemble_variant(name: str, base: Path, work: Path, model: Path) -> None:
    """The diffusers folder of a variant: tiny-1.5's, with the parts that are its own; weights in fp16."""
    variant = FAMILY[name]
    with folder_atomically(model) as out:
        for part in ("vae", "tokenizer", *(() if variant.text else ("text_encoder",))):
            shutil.copytree(base / part, out / part)
        if variant.text:
            CLIPTextModel.from_pretrained(work / "text_encoder").save_pretrained(out / "text_encoder")
        UNet2DConditionModel.from_pretrained(work / "unet").half().save_pretrained(out / "unet")
        new_scheduler(variant.prediction_type).save_pretrained(out / "scheduler")
        shutil.copyfile(base / "model_index.json", out / "model_index.json")
