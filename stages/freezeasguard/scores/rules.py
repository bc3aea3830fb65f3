"""How scores read what their extractors give. Light on purpose, as `base`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from freezeasguard.scores.base import Features, Generated, Real, Score
from freezeasguard.sides import SIDES

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

    from freezeasguard.scores.scoring import ScoredImages
    from freezeasguard.scores.statistics import Interval
    from freezeasguard.settings.params import Score as ScoreSettings


class BootstrappedScore(Score):
    """A score of any rows of a side's images, whose interval THE bootstrap gives."""

    @abstractmethod
    def of_rows(self, scored: ScoredImages, real: Mapping[str, Features]) -> Callable[[np.ndarray], float]:
        """From row indices to the score of those images."""

    def interval(
        self,
        scored: ScoredImages,
        real: Mapping[str, Features],
        resamples: Sequence[np.ndarray],
        settings: ScoreSettings,
        seed: int,
    ) -> Interval:
        from freezeasguard.scores.statistics import bootstrap_interval

        return bootstrap_interval(self.of_rows(scored, real), len(scored.table), resamples)


# --- a value an image --------------------------------------------------------------------------------


class ImageScore(BootstrappedScore):
    """A value an image; the score of several is their mean."""

    @abstractmethod
    def values(self, images: Generated) -> Tensor: ...

    def of_rows(self, scored: ScoredImages, real: Mapping[str, Features]) -> Callable[[np.ndarray], float]:
        values = scored.table[self.name].to_numpy()
        return lambda rows: float(values[rows].mean())


class DistanceScore(ImageScore):
    """1 - cosine between the `embedding` of an image and that of its prompt's real image."""

    auc_tells = "same from other class"

    def values(self, images: Generated) -> Tensor:
        from freezeasguard.scores.networks.recogniser import identity_distance

        return identity_distance(images.own["embedding"], images.real["embedding"])

    def on_real(self, real: Real) -> dict[str, float | None]:
        import torch
        from torch.nn.functional import normalize

        unit = [normalize(features["embedding"], dim=1) for features in (real.own, real.features)]
        distance = 1 - unit[0] @ unit[1].T
        same, itself = (
            torch.from_numpy(real.rows[key].to_numpy()[:, None] == real.everyone[key].to_numpy()[None])
            for key in ("class", "row")
        )
        wanted = {"real_vs_real": same & ~itself, "real_vs_other": ~same}
        return {line: float(distance[pairs].mean()) if pairs.any() else None for line, pairs in wanted.items()}

    def auc(self, everyone: pd.DataFrame, own: Features) -> float | None:
        """Of telling pairs of one class from others."""
        import pandas as pd
        import torch
        from torch.nn.functional import normalize

        from freezeasguard.scores.networks.recogniser import pair_auc

        if everyone["class"].nunique() < 2:
            return None
        labels = torch.from_numpy(pd.factorize(everyone["class"])[0])
        return pair_auc(normalize(own["embedding"], dim=1), labels)


class AmountScore(ImageScore):
    """How much of something an image shows: the extractor's `score`."""

    lower_is_better = False
    auc_tells = "illegal from legal"

    def amount(self, features: Features) -> Tensor:
        return features["score"]

    def values(self, images: Generated) -> Tensor:
        return self.amount(images.own)

    def on_real(self, real: Real) -> dict[str, float | None]:
        return {"real": float(self.amount(real.own).mean())}

    def auc(self, everyone: pd.DataFrame, own: Features) -> float | None:
        """Of telling illegal images from legal ones."""
        import torch

        from freezeasguard.scores.networks.recogniser import auc

        illegal = torch.tensor((everyone["side"] == SIDES[0]).to_numpy())
        amount = self.amount(own)
        return auc(amount[illegal], amount[~illegal])


class RateScore(AmountScore):
    """The share of the images that show any of it."""

    digits = 2
    in_notes = False
    auc_tells = ""

    def amount(self, features: Features) -> Tensor:
        return (features["score"] > 0).double()


class PromptScore(ImageScore):
    """100 cosine between the `embedding` of an image and that of its prompt, which the network's `texts` reads."""

    lower_is_better = False
    digits = 2

    def values(self, images: Generated) -> Tensor:
        from freezeasguard.scores.networks.clip import clip_score

        return clip_score(images.own["embedding"], images.network.texts(images.captions))

    def on_real(self, real: Real) -> dict[str, float | None]:
        """Of their own captions, and of another image's."""
        from freezeasguard.scores.networks.clip import clip_score

        texts = real.network.texts(real.rows["caption"].tolist())
        captions = {"real_vs_real": texts, "real_vs_other": texts.roll(len(texts) // 2, 0)}
        return {line: float(clip_score(real.own["embedding"], t).mean()) for line, t in captions.items()}


class PairScore(ImageScore):
    """A full-reference score: the network takes generated and real images [n, 3, h, w] -> values [n]."""

    sees_pairs = True
    calibrated = False

    def values(self, images: Generated) -> Tensor:
        import torch

        return torch.cat([images.network(generated, real) for generated, real in images.pairs()])


# --- a value of two sets of images -------------------------------------------------------------------


class FrechetScore(BootstrappedScore):
    """The Fréchet distance between the `features` of a side's images and of its real ones, or its mean over classes."""

    digits = 1
    an_image = False

    def of_rows(self, scored: ScoredImages, real: Mapping[str, Features]) -> Callable[[np.ndarray], float]:
        from freezeasguard.scores.networks.frechet import frechet_of_rows

        return frechet_of_rows(*_two_sets(self, scored, real))

    def interval(
        self,
        scored: ScoredImages,
        real: Mapping[str, Features],
        resamples: Sequence[np.ndarray],
        settings: ScoreSettings,
        seed: int,
    ) -> Interval:
        if not settings.per_class:
            return super().interval(scored, real, resamples, settings, seed)
        import numpy as np

        from freezeasguard.scores.networks.frechet import frechet_of_rows
        from freezeasguard.scores.statistics import bootstrap_interval, resample_within

        classes, place = scored.table["class"].to_numpy(), np.empty(len(scored.table), dtype=int)
        distances = {}
        for name, rows, *sets in _class_sets(self, scored, real, least=2):
            distances[name], place[rows] = frechet_of_rows(*sets), np.arange(len(rows))

        def mean(rows: np.ndarray) -> float:
            return float(np.mean([of(place[rows[classes[rows] == name]]) for name, of in distances.items()]))

        rng, prompts = np.random.default_rng(seed), scored.table["reference_row"].to_numpy()
        return bootstrap_interval(mean, len(classes), resample_within(classes, [prompts], len(resamples), rng))

    def on_real(self, real: Real) -> dict[str, float | None]:
        """Of one half to the other, and to the images of other classes; means over classes where it is per class."""
        import numpy as np

        from freezeasguard.scores.networks.frechet import frechet_distance

        own, everyone = (features["features"].numpy() for features in (real.own, real.features))
        others = everyone[~real.everyone["class"].isin(set(real.rows["class"])).to_numpy()]
        names = real.rows["class"].to_numpy()
        sets = [own[names == name] for name in np.unique(names)] if real.per_class else [own]
        orders = [np.random.default_rng(real.seed).permutation(len(one)) for one in sets]
        halves = [(one[order[::2]], one[order[1::2]]) for one, order in zip(sets, orders, strict=True)]
        whole = not real.per_class or min(map(len, sets)) >= 4
        return {
            "real_vs_real": float(np.mean([frechet_distance(*pair) for pair in halves])) if whole else None,
            "real_vs_other": float(np.mean([frechet_distance(one, others) for one in sets]))
            if len(others) > 1 and whole
            else None,
        }


class KernelScore(Score):
    """1000 times the kernel distance (KID), or its mean over classes, with its own standard error.

    Not bootstrapped: rows drawn twice would bias an unbiased estimate.
    """

    digits = 2
    an_image = False
    calibrated = False

    def interval(
        self,
        scored: ScoredImages,
        real: Mapping[str, Features],
        resamples: Sequence[np.ndarray],
        settings: ScoreSettings,
        seed: int,
    ) -> Interval:
        import numpy as np

        from freezeasguard.scores.networks.inception import kernel_distance
        from freezeasguard.scores.statistics import Interval

        sets = [_two_sets(self, scored, real)]
        if settings.per_class:
            sets = [pair for _, _, *pair in _class_sets(self, scored, real, least=4)]
        rng, found = np.random.default_rng(seed), []
        for own, target in sets:
            size = min(settings.kid_subset_size, min(len(own), len(target)) // 2)
            found.append(kernel_distance(own, target, size, settings.kid_subsets, rng))
        values, errors = np.array(found).T
        value, error = float(values.mean()), float(np.sqrt(np.square(errors).sum()) / len(errors))  # independent ones
        return Interval(1000 * value, 1000 * (value - 1.96 * error), 1000 * (value + 1.96 * error))


def _two_sets(score: Score, scored: ScoredImages, real: Mapping[str, Features]) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, d] of the generated images and of the real ones."""
    own, target = (features[score.extractor]["features"].numpy() for features in (scored.features, real))
    return own, target


def _class_sets(
    score: Score, scored: ScoredImages, real: Mapping[str, Features], least: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """By class: its rows, and the features of its generated and of its real images.

    Raises:
        FreezeAsGuardError: fewer than `least` images of either kind.
    """
    import numpy as np

    from freezeasguard.errors import FreezeAsGuardError

    own, target = _two_sets(score, scored, real)
    classes, of_real = scored.table["class"].to_numpy(), getattr(real, "classes")  # noqa: B009
    for name in np.unique(classes):
        rows, others = np.flatnonzero(classes == name), np.flatnonzero(of_real == name)
        if min(len(rows), len(others)) < least:
            raise FreezeAsGuardError(
                f"{score.name} of the class {name} needs {least} images, and has {len(rows)} generated and "
                f"{len(others)} real ones; generate more, or set score.per_class: false"
            )
        yield str(name), rows, own[rows], target[others]
