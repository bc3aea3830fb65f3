"""The stand-ins for CSD, FID and KID that one pass of EfficientNet-lite0 serves; none is on the original's scale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freezeasguard.scores.base import Features, Look, Score
from freezeasguard.scores.rules import DistanceScore, FrechetScore, KernelScore

if TYPE_CHECKING:
    from torch import Tensor

    from freezeasguard.settings.params import Score as ScoreSettings


class EfficientNet(Score):
    """The set's features, and the style of each image."""

    shared_extractor = "efficientnet"
    float32 = True

    def load(self, settings: ScoreSettings, scorers: Path) -> Callable[[Tensor], Features]:
        from freezeasguard.scores.networks.efficientnet import load_efficientnet, pooled_and_statistics
        from freezeasguard.scores.networks.style import BLOCKS, StyleFeatures

        style = StyleFeatures(scorers)

        def look(_: Any, images: Tensor) -> Features:
            pooled, statistics = pooled_and_statistics(images, BLOCKS)
            return {"features": pooled, "embedding": style.embed(statistics)}

        return Look(load_efficientnet(), look)

    def weight_files(self, settings: ScoreSettings, scorers: Path) -> list[Path]:
        from freezeasguard.scores.networks.efficientnet import weight_file
        from freezeasguard.scores.networks.style import STYLE_FILE

        return [weight_file(), scorers / STYLE_FILE]


class StyleDistance(EfficientNet, DistanceScore):
    name = "style_efficientnet_lite0"
    label = "Style distance (EfficientNet)"
    paper_metric, paper_label = "csd", "CSD"


class EfficientNetDistance(EfficientNet, FrechetScore):
    name = "fd_efficientnet_lite0"
    label = "FD EfficientNet-lite0"
    paper_metric, paper_label = "fid", "FID"


class EfficientNetKernelDistance(EfficientNet, KernelScore):
    name = "kd_efficientnet_lite0"
    label = "KD EfficientNet-lite0 x 1000"
