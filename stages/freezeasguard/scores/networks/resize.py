"""Images brought to the size a published network expects."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def enlarge(images: Tensor, size_px: int) -> Tensor:
    """Images [n, 3, h, w] whose longer side is below `size_px`, enlarged to it; larger ones stay as they are.

    Bicubic, keeping the aspect ratio and the range -1..1. Detectors miss faces of a few dozen pixels.
    """
    height, width = images.shape[-2:]
    if max(height, width) >= size_px:
        return images
    scale = size_px / max(height, width)
    return _bicubic(images, round(height * scale), round(width * scale))


def resize_and_crop(images: Tensor, size_px: int) -> Tensor:
    """Images [n, 3, h, w], the shorter side resized (bicubic, antialiased) to `size_px`, then the middle square.

    torchvision's Resize and CenterCrop on PIL images, less the rounding to whole grey levels.
    """
    height, width = images.shape[-2:]
    scale = size_px / min(height, width)
    # torchvision cuts the longer side down to whole pixels and rounds the crop's corner.
    resized = _bicubic(images, max(size_px, int(height * scale)), max(size_px, int(width * scale)))
    top, left = (round((side - size_px) / 2) for side in resized.shape[-2:])
    return resized[..., top : top + size_px, left : left + size_px]


def _bicubic(images: Tensor, height: int, width: int) -> Tensor:
    # `antialias` also selects PIL's kernel (a = -0.5); bicubic overshoots the range at edges.
    return F.interpolate(images, size=(height, width), mode="bicubic", antialias=True).clamp(-1, 1)
