"""The stand-in for DeepFace on drawn figures: a recogniser trained on other figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from freezeasguard.scores.base import Features, Look
from freezeasguard.scores.rules import DistanceScore

if TYPE_CHECKING:
    from torch import Tensor

    from freezeasguard.settings.params import Score as ScoreSettings


class RecogniserDistance(DistanceScore):
    name = "recogniser"
    label = "Recogniser distance"
    paper_metric, paper_label = "fn_l", "FN-L"
    missing = "figure"

    def load(self, settings: ScoreSettings, scorers: Path) -> Callable[[Tensor], Features]:
        from freezeasguard.scores.networks.recogniser import PRESENCE_THRESHOLD, Recogniser

        network = Recogniser.load(scorers)

        def look(network: Recogniser, images: Tensor) -> Features:
            embedding, presence = network.extract(images)
            return {"embedding": embedding, "found": presence > PRESENCE_THRESHOLD}

        return Look(network, look)

    def weight_files(self, settings: ScoreSettings, scorers: Path) -> list[Path]:
        from freezeasguard.scores.networks.recogniser import RECOGNISER_FILE

        return [scorers / RECOGNISER_FILE]
