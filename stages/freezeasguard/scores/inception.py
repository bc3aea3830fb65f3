"""FID and KID, from one pass of FID's Inception."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from freezeasguard.scores.base import Features, Look, Score, settings_file
from freezeasguard.scores.rules import FrechetScore, KernelScore

if TYPE_CHECKING:
    from torch import Tensor

    from freezeasguard.settings.params import Score as ScoreSettings


class Inception(Score):
    shared_extractor = "inception"
    float32 = True

    def load(self, settings: ScoreSettings, scorers: Path) -> Callable[[Tensor], Features]:
        import torch

        from freezeasguard.scores.networks.inception import InceptionFeatures

        network = InceptionFeatures(settings_file(settings, "inception_weights"))
        return Look(network, lambda network, images: {"features": torch.from_numpy(network(images))})

    def weight_files(self, settings: ScoreSettings, scorers: Path) -> list[Path]:
        return [settings_file(settings, "inception_weights")]


class FID(Inception, FrechetScore):
    name = "fid"
    label = "FID"
    paper_metric, paper_label = "fid", "FID"


class KID(Inception, KernelScore):
    name = "kid"
    label = "KID x 1000"
