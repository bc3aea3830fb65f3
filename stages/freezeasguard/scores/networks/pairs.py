"""Full-reference scores: each generated image against the real image of its prompt (METHOD, section 7)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.scores.networks.optional import import_paper_package

TOPIQ_URL = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/cfanet_fr_pipal_res50-69bbe5ba.pth"
ALEXNET_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"


def topiq_download() -> Path:
    """Where pyiqa keeps TOPIQ's weights that it downloaded."""
    return Path(torch.hub.get_dir()) / "pyiqa" / Path(TOPIQ_URL).name


def lpips_weights() -> list[Path]:
    """AlexNet's, where torchvision keeps them, and LPIPS' own, inside its package."""
    package = Path(str(import_paper_package("lpips").__file__)).parent
    return [
        Path(torch.hub.get_dir()) / "checkpoints" / Path(ALEXNET_URL).name,
        package / "weights" / "v0.1" / "alex.pth",
    ]


class Topiq:
    """TOPIQ, `topiq_fr-pipal` (package pyiqa, PolyForm Noncommercial): about 0..1, higher is nearer the reference.

    Args:
        path: `cfanet_fr_pipal_res50-69bbe5ba.pth`; without it pyiqa downloads the file.
    Raises:
        FreezeAsGuardError: pyiqa is not installed, or the weights are neither there nor downloadable.
    """

    device = "cpu"

    def __init__(self, path: Path | None = None) -> None:
        pyiqa = import_paper_package("pyiqa")
        if path is not None and not path.is_file():
            raise FreezeAsGuardError(f"{path} is missing; download {TOPIQ_URL} and put it there")
        try:
            # The file holds the ResNet too (pyiqa loads it strictly): its ImageNet weights would be overwritten.
            self.metric = pyiqa.create_metric("topiq_fr-pipal", backbone_pretrain=False, pretrained=path is None)
            if path is not None:
                self.metric.load_weights(str(path))
        except (URLError, OSError) as error:
            raise FreezeAsGuardError(
                f"TOPIQ's weights cannot be downloaded ({error}); fetch {TOPIQ_URL} into {topiq_download().parent}"
            ) from error
        except (RuntimeError, KeyError, TypeError) as error:
            raise FreezeAsGuardError(f"{path or TOPIQ_URL} does not hold TOPIQ's weights ({error})") from error

    def to(self, device: str) -> Topiq:
        self.metric, self.device = self.metric.to(device), device
        return self

    @torch.no_grad()
    def __call__(self, generated: Tensor, reference: Tensor, batch_size: int = 8) -> Tensor:
        """Scores [n] of images [n, 3, h, w] in -1..1, each against the reference in its row."""
        # pyiqa: (distorted, reference). The authors' script passes (real, generated), and the score is not symmetric.
        return _in_batches(
            lambda one, other: self.metric(_unit_range(one), _unit_range(other)),
            generated,
            reference,
            batch_size,
            self.device,
        )


class Lpips:
    """LPIPS 0.1 on AlexNet (package lpips, BSD-2-Clause; Zhang et al. 2018): 0 for equal images, lower is nearer.

    The paper's Figure 20. lpips ships its own weights and downloads torchvision's AlexNet.

    Raises:
        FreezeAsGuardError: lpips is not installed, or AlexNet is neither there nor downloadable.
    """

    device = "cpu"

    def __init__(self) -> None:
        lpips = import_paper_package("lpips")
        try:
            self.metric = lpips.LPIPS(net="alex", verbose=False)
        except (URLError, OSError) as error:
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            raise FreezeAsGuardError(
                f"LPIPS' AlexNet cannot be downloaded ({error}); fetch {ALEXNET_URL} into {folder}"
            ) from error

    def to(self, device: str) -> Lpips:
        self.metric, self.device = self.metric.to(device), device
        return self

    @torch.no_grad()
    def __call__(self, generated: Tensor, reference: Tensor, batch_size: int = 32) -> Tensor:
        """Distances [n] of images [n, 3, h, w] in -1..1, each to the reference in its row."""
        return _in_batches(self.metric, generated, reference, batch_size, self.device)


def _unit_range(images: Tensor) -> Tensor:
    return ((images + 1) / 2).clamp(0, 1)


def _in_batches(
    metric: Callable[[Tensor, Tensor], Tensor], generated: Tensor, reference: Tensor, batch_size: int, device: str
) -> Tensor:
    """`metric` on the pairs of rows [n], of images of one size."""
    if generated.shape != reference.shape:
        raise FreezeAsGuardError(
            f"a full-reference score needs pairs of one size, got {list(generated.shape)} and {list(reference.shape)}"
        )
    parts = [
        metric(one.to(device), other.to(device)).float().cpu().reshape(len(one))
        for one, other in zip(generated.split(batch_size), reference.split(batch_size), strict=True)
    ]
    return torch.cat(parts)
