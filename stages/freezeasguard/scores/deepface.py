"""DeepFace's recognisers: the paper's three, and Dlib, whose weights come in a package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from freezeasguard.scores.base import Features, Look
from freezeasguard.scores.rules import DistanceScore

if TYPE_CHECKING:
    from torch import Tensor

    from freezeasguard.settings.params import Score as ScoreSettings


class DeepFace(DistanceScore):
    missing = "face"
    float32 = True
    model: str
    """DeepFace's name of it."""

    def detector(self, settings: ScoreSettings) -> str:
        return settings.face_detector

    def load(self, settings: ScoreSettings, scorers: Path) -> Callable[[Tensor], Features]:
        from freezeasguard.scores.networks.faces import DeepFaceEmbedder

        network = DeepFaceEmbedder(self.model, self.detector(settings))

        def look(network: DeepFaceEmbedder, images: Tensor) -> Features:
            embedding, found = network.extract(images)
            return {"embedding": embedding, "found": found}

        return Look(network, look)

    def weight_files(self, settings: ScoreSettings, scorers: Path) -> list[Path]:
        from freezeasguard.scores.networks.faces import weight_files

        return weight_files(self.model, self.detector(settings))


class Dlib(DeepFace):
    name = "dlib"
    label = "DeepFace Dlib distance"
    model = "Dlib"

    def detector(self, settings: ScoreSettings) -> str:
        return "dlib"

    def load(self, settings: ScoreSettings, scorers: Path) -> Callable[[Tensor], Features]:
        from freezeasguard.scores.networks.faces import install_dlib_weights

        install_dlib_weights()
        return super().load(settings, scorers)


class Facenet512(DeepFace):
    name = "facenet512"
    label = "FN-L distance"
    model = "Facenet512"
    paper_metric, paper_label = "fn_l", "FN-L"


class Facenet(DeepFace):
    name = "facenet"
    label = "FN distance"
    model = "Facenet"
    paper_metric, paper_label = "fn", "FN"


class VGGFace(DeepFace):
    name = "vgg_face"
    label = "VGG distance"
    model = "VGG-Face"
    paper_metric, paper_label = "vgg", "VGG"
