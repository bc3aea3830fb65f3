"""The networks behind the scores: each is loaded once, and looks at each image once."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.computing import autocast, configure
from freezeasguard.models.images import read_images
from freezeasguard.scores.base import Features, Score
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.compute import Compute
from freezeasguard.settings.params import Score as ScoreSettings

CHUNK = 64
"""Images read at once."""
THREADS = 2
"""However many cores or workers there are: features differ in their last bits with the number of threads."""


class Extractors:
    """What looks at the images, by score; loaded when a case first asks for it, and shared where scores share it.

    Args:
        scorers: the folder of the embedded networks.
        device: where they compute; `compute`: in which precision.
    """

    def __init__(
        self,
        settings: ScoreSettings,
        scorers: Path,
        threads: int = THREADS,
        device: str = "cpu",
        compute: Compute | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        self.settings, self.scorers, self.device, self.compute = settings, scorers, device, compute or Compute()
        configure(self.compute, device)
        self._loaded: dict[str, Any] = {}

    def of(self, score: Score) -> Any:
        """What `Score.load` returns."""
        if score.extractor not in self._loaded:
            network = score.load(self.settings, self.scorers)
            if self.device != "cpu" and hasattr(network, "to"):
                network.to(self.device)
            self._loaded[score.extractor] = network
        return self._loaded[score.extractor]

    def precision(self, score: Score) -> AbstractContextManager[Any]:
        """In which a score's network computes: autocast as `compute` says, or float32 where the score needs it."""
        return nullcontext() if score.float32 else autocast(self.compute, self.device)

    def weight_hashes(self, names: Collection[str]) -> dict[str, str]:
        """SHA-256, by "EXTRACTOR/FILE", of every file that the scores' weights come from."""
        hashes = {}
        for score in {SCORES[name].extractor: SCORES[name] for name in names}.values():
            for path in score.weight_files(self.settings, self.scorers):
                if not path.is_file():
                    raise FreezeAsGuardError(f"{path}, from which the score {score.name} loads, is missing; restore it")
                with path.open("rb") as file:
                    hashes[f"{score.extractor}/{path.name}"] = hashlib.file_digest(file, "sha256").hexdigest()
        return hashes


def extract(paths: Sequence[Path], names: Collection[str], extractors: Extractors) -> dict[str, Features]:
    """Features of the images at `paths`, by the extractor of each score named."""
    chosen = [SCORES[name] for name in names if not SCORES[name].sees_pairs]
    wanted = {score.extractor: score for score in sorted(chosen, key=lambda score: score.extractor)}
    parts: dict[str, list[Features]] = {name: [] for name in wanted}
    for start in range(0, len(paths), CHUNK):
        images = read_images(paths[start : start + CHUNK])
        for name, score in wanted.items():
            with extractors.precision(score):
                parts[name].append(extractors.of(score)(images))
    return {
        name: {key: torch.cat([part[key] for part in chunks]) for key in chunks[0]} for name, chunks in parts.items()
    }
