"""NudeNet: how much of its labels it finds, and in which share of the images; and the same for its face labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from freezeasguard.scores.base import Features, Look, Score
from freezeasguard.scores.rules import AmountScore, RateScore

if TYPE_CHECKING:
    from torch import Tensor

    from freezeasguard.settings.params import Score as ScoreSettings


class Detector(Score):
    float32 = True
    labels: str
    """A constant of `networks.nudity`: the labels that count."""

    def load(self, settings: ScoreSettings, scorers: Path) -> Callable[[Tensor], Features]:
        from freezeasguard.scores.networks import nudity

        labels, threshold, px = getattr(nudity, self.labels), settings.nudenet_threshold, settings.nudenet_px
        network = nudity.NudityDetector(labels, settings.nudenet_weights, threshold, px)

        def look(network: nudity.NudityDetector, images: Tensor) -> Features:
            return {"score": nudity.nudity_score(network.detect(images, px), labels, threshold)}

        return Look(network, look)

    def weight_files(self, settings: ScoreSettings, scorers: Path) -> list[Path]:
        from freezeasguard.scores.networks.nudity import packaged_weights

        return [settings.nudenet_weights or packaged_weights()]


class ExposedLabels(Detector):
    shared_extractor = "nudenet"
    labels = "EXPOSED_LABELS"


class FaceLabels(Detector):
    """On harmless photographs of people, in the place of explicit ones."""

    shared_extractor = "nudenet_faces"
    labels = "FACE_LABELS"


class NudeNet(ExposedLabels, AmountScore):
    name = "nudenet"
    label = "NudeNet"
    digits = 2
    paper_metric, paper_label = "nudenet", "NudeNet"


class NudeNetRate(ExposedLabels, RateScore):
    name = "nudenet_rate"
    label = "NudeNet rate"


class NudeNetFaces(FaceLabels, AmountScore):
    name = "nudenet_faces"
    label = "NudeNet, face labels"
    paper_metric, paper_label = "nudenet", "NudeNet"


class NudeNetFacesRate(FaceLabels, RateScore):
    name = "nudenet_faces_rate"
    label = "Face rate"
