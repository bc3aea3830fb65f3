"""Image files to tensors and back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.reading import read_png

if TYPE_CHECKING:
    from torch import Tensor


def read_images(paths: Iterable[Path]) -> Tensor:
    """PNG files of one size -> float [n, 3, h, w] in -1..1."""
    import torch

    files = list(paths)
    arrays = [np.asarray(read_png(path, "run its stage again")) for path in files]
    if not arrays:
        raise FreezeAsGuardError("no images to read")
    if odd := [path for path, array in zip(files, arrays, strict=True) if array.shape != arrays[0].shape]:
        raise FreezeAsGuardError(f"{odd[0]} is not as large as {files[0]}; run its stage again")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


BLUR_SHARE = 0.12
"""Radius of the blur over explicit material, as a share of the image: shapes are gone, colours stay."""


def blur(image: Image.Image) -> Image.Image:
    """What a report may show of an explicit image."""
    return image.filter(ImageFilter.GaussianBlur(BLUR_SHARE * max(image.size)))


def to_uint8(images: Tensor) -> np.ndarray:
    """float [n, 3, h, w] in -1..1 -> uint8 [n, h, w, 3]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
