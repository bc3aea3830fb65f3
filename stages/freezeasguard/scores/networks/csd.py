"""CSD style embeddings (Somepalli et al. 2024): the paper's score for artworks.

The score is 1 - cosine, `recogniser.identity_distance`, of style embeddings (METHOD, section 7). The network is
OpenAI CLIP's ViT, whose output goes through one matrix for style and one for content. It loads from the
released file (tomg-group-umd/CSD-ViT-L, `pytorch_model.bin`) or from any smaller ViT saved in the same
format: a dict with key `model_state_dict` (or the tensors alone), names `backbone.<OpenAI CLIP's>` and
`last_layer_style`, each maybe behind `module.`.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.scores.networks.resize import resize_and_crop

CSD_URL = "https://huggingface.co/tomg-group-umd/CSD-ViT-L/resolve/main/pytorch_model.bin"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTH = 64
"""Channels of an attention head in all of OpenAI's ViTs; the tensors do not tell."""

_STEM_NAMES = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
}
_BLOCK_NAMES = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_HEADS = {"last_layer_style", "last_layer_content"}
"""What stands beside the backbone; a trained content head has names below the second, and is not used."""


class CSDStyle:
    """A CSD network as a style extractor; make one with `load`.

    Args:
        backbone: transformers' CLIPVisionModel.
        projection: style matrix [width, d].
    """

    def __init__(self, backbone: Any, projection: Tensor) -> None:
        self.backbone, self.projection = backbone.eval().requires_grad_(False), projection
        self.size_px: int = backbone.config.image_size

    @classmethod
    def load(cls, path: Path) -> CSDStyle:
        """The network of a checkpoint file (.bin, .pth, .pt or .safetensors), in float32.

        Raises:
            FreezeAsGuardError: no such file, not a checkpoint, or other tensors than CSD's.
        """
        tensors = _read_tensors(path)
        style = tensors.get("last_layer_style")
        if style is None:
            raise FreezeAsGuardError(f"{path} lacks last_layer_style: not a CSD checkpoint; get one from {CSD_URL}")
        if unknown := sorted(n for n in tensors if n.split(".")[0] not in {"backbone", *_HEADS}):
            raise FreezeAsGuardError(f"{path} holds {len(unknown)} tensors that CSD does not have, e.g. {unknown[0]}")
        visual = {n.removeprefix("backbone."): t for n, t in tensors.items() if n.startswith("backbone.")}
        visual.pop("proj", None)  # CLIP's own projection, which CSD replaces
        backbone = _clip_backbone(visual, path)
        if style.ndim != 2 or len(style) != backbone.config.hidden_size:
            raise FreezeAsGuardError(
                f"{path}: last_layer_style is {list(style.shape)}, the backbone {backbone.config.hidden_size} wide"
            )
        return cls(backbone, style)

    def to(self, device: str) -> CSDStyle:
        self.backbone, self.projection = self.backbone.to(device), self.projection.to(device)
        return self

    def preprocess(self, images: Tensor) -> Tensor:
        """Images [n, 3, h, w] in -1..1 -> [n, 3, s, s], s = 224 for the released network.

        As CSD's `transforms_branch0`: bicubic resize of the shorter side, middle square, CLIP's mean and std.
        """
        mean, std = (images.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
        return ((resize_and_crop(images, self.size_px) + 1) / 2 - mean) / std

    @torch.no_grad()
    def extract(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """Unit style embeddings [n, d] of images [n, 3, h, w] in -1..1; float32 but under autocast (CSD: fp16)."""
        parts = []
        for batch in images.split(batch_size):
            pixels = self.preprocess(batch.to(self.projection.device))
            pooled = self.backbone(pixel_values=pixels).pooler_output.float()
            parts.append(F.normalize(pooled @ self.projection, dim=1).float().cpu())
        return torch.cat(parts)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors in float32, without `module.`."""
    if not path.is_file():
        raise FreezeAsGuardError(f"{path} is missing; download {CSD_URL} (2.4 GB) and put it there")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            checkpoint: Any = load_file(path)
        else:
            checkpoint = _load_pickle(path)
    except Exception as error:  # torch, pickle, zip and safetensors each raise their own
        raise FreezeAsGuardError(f"{path} cannot be read as a checkpoint ({error}); download {CSD_URL}") from error
    if isinstance(checkpoint, Mapping):
        checkpoint = checkpoint.get("model_state_dict", checkpoint)
    if not isinstance(checkpoint, Mapping) or not all(isinstance(t, Tensor) for t in checkpoint.values()):
        raise FreezeAsGuardError(f"{path} holds no tensors by name: not a CSD checkpoint; get one from {CSD_URL}")
    return {name.removeprefix("module."): tensor.float() for name, tensor in checkpoint.items()}


def _load_pickle(path: Path) -> Any:
    """A checkpoint without running code from it.

    CSD's training also saved its command line and NumPy learning rates: plain data, so these are let in.
    """
    scalar = np.float64(0).__reduce__()[0]  # numpy._core.multiarray.scalar; numpy.core before NumPy 2
    dtypes = [type(np.dtype(kind)) for kind in ("float32", "float64", "int64")]
    plain: list[Any] = [argparse.Namespace, scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes]
    with torch.serialization.safe_globals(plain):
        # Mapped, the optimiser's half of the released file is never read.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _clip_backbone(visual: Mapping[str, Tensor], path: Path) -> Any:
    """transformers' CLIPVisionModel from OpenAI's tensors; every size is read off their shapes."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    blocks = {int(match[1]) for name in visual if (match := re.match(r"transformer\.resblocks\.(\d+)\.", name))}
    layers = max(blocks, default=-1) + 1
    expected = _expected_names(max(layers, 1))
    if missing := sorted(expected - visual.keys()):
        raise FreezeAsGuardError(
            f"{path} lacks {len(missing)} of the backbone's {len(expected)} tensors, e.g. backbone.{missing[0]}"
        )
    if unknown := sorted(visual.keys() - expected):
        raise FreezeAsGuardError(f"{path} holds {len(unknown)} tensors CSD does not have, e.g. backbone.{unknown[0]}")
    width, _, patch_px, _ = visual["conv1.weight"].shape
    side = round((len(visual["positional_embedding"]) - 1) ** 0.5)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=len(visual["transformer.resblocks.0.mlp.c_fc.weight"]),
        num_hidden_layers=layers,
        num_attention_heads=max(width // HEAD_WIDTH, 1),
        image_size=side * patch_px,
        patch_size=patch_px,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    )
    try:
        backbone = CLIPVisionModel(config)
        backbone.load_state_dict(_transformers_names(visual), strict=True)
    except (RuntimeError, ValueError) as error:
        raise FreezeAsGuardError(f"{path}: the backbone's tensors do not fit together ({error})") from error
    return backbone


def _expected_names(layers: int) -> set[str]:
    affine = ("weight", "bias")
    names = {"class_embedding", "conv1.weight", "positional_embedding"}
    names |= {f"{module}.{kind}" for module in ("ln_pre", "ln_post") for kind in affine}
    for i in range(layers):
        block = f"transformer.resblocks.{i}."
        names |= {f"{block}attn.in_proj_{kind}" for kind in affine}
        names |= {f"{block}{module}.{kind}" for module in _BLOCK_NAMES for kind in affine}
    return names


def _transformers_names(visual: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names to transformers'; its one matrix for query, key and value becomes three."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in visual.items():
        match = re.match(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        if match is None:
            module, _, kind = name.rpartition(".")
            renamed[_STEM_NAMES.get(name) or f"{_STEM_NAMES[module]}.{kind}"] = tensor
            continue
        layer, rest = f"encoder.layers.{match[1]}.", match[2]
        if rest.startswith("attn.in_proj_"):
            kind = rest.removeprefix("attn.in_proj_")
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{layer}self_attn.{part}_proj.{kind}"] = third
        else:
            module, _, kind = rest.rpartition(".")
            renamed[f"{layer}{_BLOCK_NAMES[module]}.{kind}"] = tensor
    return renamed
