"""CSD (Somepalli et al. 2024): the paper's score of artists' styles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from freezeasguard.scores.base import Features, Look, settings_file
from freezeasguard.scores.rules import DistanceScore

if TYPE_CHECKING:
    from torch import Tensor

    from freezeasguard.settings.params import Score as ScoreSettings


class CSD(DistanceScore):
    name = "csd"
    label = "CSD"
    paper_metric, paper_label = "csd", "CSD"

    def load(self, settings: ScoreSettings, scorers: Path) -> Callable[[Tensor], Features]:
        from freezeasguard.scores.networks.csd import CSDStyle

        network = CSDStyle.load(settings_file(settings, "csd_weights"))
        return Look(network, lambda network, images: {"embedding": network.extract(images)})

    def weight_files(self, settings: ScoreSettings, scorers: Path) -> list[Path]:
        return [settings_file(settings, "csd_weights")]
