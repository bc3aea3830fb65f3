"""CLIP scores: by the paper's network, and by the tiny one that was trained with the embedded models."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from freezeasguard.scores.base import settings_file
from freezeasguard.scores.rules import PromptScore

if TYPE_CHECKING:
    from freezeasguard.scores.networks.clip import ClipFeatures
    from freezeasguard.settings.params import Score as ScoreSettings


class ClipScore(PromptScore):
    paper_metric, paper_label = "clip", "CLIP"

    @abstractmethod
    def folder(self, settings: ScoreSettings, scorers: Path) -> Path:
        """The network's, in transformers' layout."""

    def load(self, settings: ScoreSettings, scorers: Path) -> ClipFeatures:
        from freezeasguard.scores.networks.clip import ClipFeatures

        return ClipFeatures(self.folder(settings, scorers))

    def weight_files(self, settings: ScoreSettings, scorers: Path) -> list[Path]:
        return sorted(self.folder(settings, scorers).glob("*.safetensors"))


class TinyClip(ClipScore):
    name = "clip_tiny"
    label = "CLIP (tiny)"

    def folder(self, settings: ScoreSettings, scorers: Path) -> Path:
        return scorers / "clip"


class Clip(ClipScore):
    name = "clip"
    label = "CLIP"

    def folder(self, settings: ScoreSettings, scorers: Path) -> Path:
        return settings_file(settings, "clip_folder")
