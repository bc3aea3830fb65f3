"""What a score is. A new one is a class in a file of its own, and a line in `registry.SCORES`.

Light on purpose: tables, tracking and params.yaml read what scores are called without loading a network, so whatever
is heavy is imported inside the methods. How a score reads what its extractor gives - as a distance, an amount, a
distance between sets - is one of the classes in `rules`, from which it inherits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freezeasguard.errors import FreezeAsGuardError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

    from freezeasguard.scores.scoring import ScoredImages
    from freezeasguard.scores.statistics import Interval
    from freezeasguard.settings.params import Score as ScoreSettings

Features = dict[str, "Tensor"]
"""What an extractor gives, a row an image: `embedding` and maybe `found`, or `score`, or `features`."""


class SideFeatures(dict[str, Features]):
    """Features of a side's real images, by extractor."""

    def __init__(self, features: Mapping[str, Features], classes: np.ndarray) -> None:
        super().__init__(features)
        self.classes = classes
        """The class of each row."""


@dataclass(frozen=True)
class Generated:
    """An arm's images as one score sees them, a row an image."""

    own: Features
    real: Features
    """Of the real image behind each image's prompt."""
    captions: list[str]
    pairs: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    """The images themselves, some [n, 3, h, w] at a time, each beside the real image of its prompt."""
    network: Any
    """What `Score.load` returned."""


@dataclass(frozen=True)
class Real:
    """The real images that no mask was learned from, as one score sees them."""

    rows: pd.DataFrame
    """Of one side, from the index of `CaseData`."""
    own: Features
    """Of `rows`."""
    everyone: pd.DataFrame
    """Of both sides."""
    features: Features
    """Of `everyone`."""
    network: Any
    seed: int
    per_class: bool = False
    """As `score.per_class`."""


@dataclass(frozen=True)
class Look:
    """An extractor: a network, and how its output is called; `to` brings it to a GPU, what it gives is on the CPU."""

    network: Any
    features: Callable[[Any, Tensor], Features]

    def __call__(self, images: Tensor) -> Features:
        return self.features(self.network, images)

    def to(self, device: str) -> Look:
        self.network.to(device)
        return self


class Score(ABC):
    """One score of METHOD, section 7, or its embedded stand-in under its own name."""

    name: str
    label: str
    lower_is_better: bool = True
    """Whether image quality rises as the score falls."""
    digits: int = 3
    paper_metric: str = ""
    """The metric of `paper_values.csv` that stands beside it."""
    paper_label: str = ""
    missing: str = ""
    """What an image lacks where the extractor found nothing."""
    shared_extractor: str = ""
    """What looks at the images, where other scores of the same `load` share its one pass."""
    an_image: bool = True
    """Whether every image has a value of its own."""
    sees_pairs: bool = False
    """Whether it looks at generated and real images side by side, so that an image alone has no features."""
    calibrated: bool = True
    """Whether it reads something on real images that its values can be held against."""
    in_notes: bool = True
    """Whether a table's notes say what that is."""
    has_weights: bool = True
    """Whether it rests on a network at all."""
    float32: bool = False
    """Whether its extractor computes in float32 whatever `compute.precision`: features of sets, whose covariances need
    it, and networks of other frameworks."""
    auc_tells: str = ""
    """What its AUC on real images is of telling apart; none is computed where this is empty."""

    @property
    def extractor(self) -> str:
        return self.shared_extractor or self.name

    @property
    def header(self) -> str:
        return f"{self.label} {'↓' if self.lower_is_better else '↑'}"

    @abstractmethod
    def load(self, settings: ScoreSettings, scorers: Path) -> Any:
        """Its extractor: images [n, 3, h, w] in -1..1 -> features, a row an image, on the CPU.

        A `Look`, or what else has `to(device)`, computes on the device; anything else where it likes.

        Args:
            scorers: the folder of the embedded networks.
        Raises:
            FreezeAsGuardError: a file or package that it needs is absent.
        """

    @abstractmethod
    def weight_files(self, settings: ScoreSettings, scorers: Path) -> list[Path]:
        """The files that `load` reads its weights from."""

    def values(self, images: Generated) -> Tensor:
        """A value an image [n], where each has one."""
        raise NotImplementedError

    @abstractmethod
    def interval(
        self,
        scored: ScoredImages,
        real: Mapping[str, Features],
        resamples: Sequence[np.ndarray],
        settings: ScoreSettings,
        seed: int,
    ) -> Interval:
        """The score of a side's images with its 95% interval.

        Args:
            real: features of the side's real images, by extractor; a SideFeatures, which knows their classes.
            resamples: rows of `scored`, THE bootstrap's; all scores share them.
        """

    def on_real(self, real: Real) -> dict[str, float | None]:
        """What it reads on a side's real images, where it is calibrated."""
        raise NotImplementedError

    def auc(self, everyone: pd.DataFrame, own: Features) -> float | None:
        """How well it tells real images apart (see `auc_tells`); None where there is nothing to tell."""
        raise NotImplementedError


def settings_file(settings: ScoreSettings, key: str) -> Path:
    """A path that the block `score` of params.yaml must name."""
    path = getattr(settings, key)
    if path is None:
        raise FreezeAsGuardError(f"params.yaml: score.{key} is null; a score of this case needs the path")
    return path
