"""Style of a drawing: the embedded stand-in for CSD, `style_efficientnet_lite0`.

Channel means and standard deviations of feature maps say how an image is drawn more than what it shows.
They are EfficientNet-lite0's here, whitened by how drawings of one style differ (`miniature.train_style`).
The score is 1 - cosine, `recogniser.identity_distance`.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.scores.networks.efficientnet import pooled_and_statistics

STYLE_FILE = "style.safetensors"
BLOCKS = (7, 14)
"""Of EfficientNet-lite0, whose channels are described."""


def block_statistics(images: Tensor) -> Tensor:
    """Statistics [n, d] of the channels of BLOCKS; images [n, 3, h, w] in -1..1."""
    return pooled_and_statistics(images, BLOCKS)[1]


class StyleFeatures:
    """Style embeddings of images.

    Args:
        folder: where `style.safetensors` lies: `mean` [d], and `whitening` [d, k], a column a direction.
    Raises:
        FreezeAsGuardError: the file is missing.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / STYLE_FILE
        if not path.is_file():
            raise FreezeAsGuardError(
                f"{path} is missing; restore it with `git checkout -- {path}` or run `dvc repro -f pretrain`"
            )
        tensors = load_file(path)
        self.mean, self.whitening = tensors["mean"].float(), tensors["whitening"].float()

    def extract(self, images: Tensor) -> Tensor:
        """Unit embeddings [n, k] of images [n, 3, h, w] in -1..1."""
        return self.embed(block_statistics(images))

    def embed(self, statistics: Tensor) -> Tensor:
        """Unit embeddings [n, k] of statistics [n, d], e.g. from a forward pass that served other scores too."""
        return F.normalize((statistics - self.mean) @ self.whitening, dim=1)


def save_style(folder: Path, mean: Tensor, whitening: Tensor) -> None:
    """Write `mean` [d] and `whitening` [d, k] for StyleFeatures, in half precision."""
    save_file({"mean": mean.half(), "whitening": whitening.half().contiguous()}, folder / STYLE_FILE)
