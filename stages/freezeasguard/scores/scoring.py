"""From images to scores: one row an image, one value with its interval a score."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from freezeasguard.arms import PRETRAINED, Arm
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.images import read_images
from freezeasguard.models.latents import CaseData
from freezeasguard.scores.base import Features, Generated, SideFeatures
from freezeasguard.scores.comparisons import Difference, holm, paired_differences
from freezeasguard.scores.extractors import CHUNK, Extractors, extract
from freezeasguard.scores.kept import kept_share
from freezeasguard.scores.registry import SCORES
from freezeasguard.scores.statistics import resample_clusters
from freezeasguard.settings.params import Score as ScoreSettings
from freezeasguard.sides import SIDES

REFERENCE_FILE = "features.safetensors"


@dataclass(frozen=True)
class Scored:
    """A score of some images, as the reports hold it."""

    value: float
    low: float
    high: float
    n: int
    """Images the value rests on."""
    n_missing: int
    """Of those, images in which nothing was found; they are embedded and scored all the same."""
    lower_is_better: bool


# --- the real images -------------------------------------------------------------------------------


def reference_rows(data: CaseData) -> pd.DataFrame:
    """The rows of the index whose images no mask was learned from."""
    return data.index.loc[data.index["part"] != "mask_learning"]


@dataclass(frozen=True)
class Reference:
    """Features of the case's real images that no mask was learned from, by `row` of its index.

    They are the references of the prompts and the target of the set distances.
    """

    rows: Tensor
    features: dict[str, Features]

    @classmethod
    def of(cls, data: CaseData, raw: Path, names: Collection[str], extractors: Extractors) -> Reference:
        index = reference_rows(data)
        paths = [raw / path for path in index["path"]]
        return cls(torch.tensor(index["row"].to_numpy()), extract(paths, names, extractors))

    def to_tensors(self) -> Features:
        flat = {f"{name}/{key}": t for name, f in self.features.items() for key, t in f.items()}
        return {"row": self.rows, **{key: t.contiguous() for key, t in flat.items()}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Reference:
        features: dict[str, Features] = {}
        for key, tensor in tensors.items():
            if key != "row":
                name, _, part = key.partition("/")
                features.setdefault(name, {})[part] = tensor
        return cls(tensors["row"], features)

    def at(self, extractor: str, rows: Collection[int]) -> Features:
        """The features of these rows of the index, in their order."""
        where = {int(row): i for i, row in enumerate(self.rows)}
        positions = torch.tensor([where[int(row)] for row in rows])
        return {key: tensor[positions] for key, tensor in self.features[extractor].items()}

    def of_side(self, data: CaseData, side: str) -> SideFeatures:
        """The features of a side's real images, by extractor: what a set of generated ones is measured against."""
        rows = data.rows(side, ["adaptation", "held_out"])
        return SideFeatures({name: self.at(name, rows["row"]) for name in self.features}, rows["class"].to_numpy())


# --- the generated images ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredImages:
    """An arm's images: `table` has a row an image with a column a score, `features` feed the set distances."""

    table: pd.DataFrame
    features: dict[str, Features]

    def take(self, chosen: np.ndarray) -> ScoredImages:
        """The rows where `chosen` [n] is true."""
        rows = torch.from_numpy(np.flatnonzero(chosen))
        features = {name: {key: t[rows] for key, t in f.items()} for name, f in self.features.items()}
        return ScoredImages(self.table[chosen].reset_index(drop=True), features)


def score_images(
    table: pd.DataFrame,
    folder: Path,
    raw: Path,
    data: CaseData,
    reference: Reference,
    names: Sequence[str],
    extractors: Extractors,
) -> ScoredImages:
    """Every score that an image has for itself, and whether its extractor found what it looks for.

    Args:
        table: the index of `folder`, with file, caption and reference_row; raw: the case's real images.
    """
    features = extract([folder / file for file in table["file"]], names, extractors)
    columns: dict[str, np.ndarray] = {}

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(table), CHUNK):
            rows = table.iloc[start : start + CHUNK]
            real = (raw / data.index.loc[row, "path"] for row in rows["reference_row"])
            yield read_images(folder / file for file in rows["file"]), read_images(real)

    for score in (SCORES[name] for name in names if SCORES[name].an_image):
        own = features.get(score.extractor, {})
        real = {} if score.sees_pairs else reference.at(score.extractor, table["reference_row"])
        images = Generated(own, real, table["caption"].tolist(), pairs, extractors.of(score))
        with extractors.precision(score):
            columns[score.name] = score.values(images).numpy()
        if "found" in own:
            columns[f"found_{score.name}"] = own["found"].numpy()
    return ScoredImages(table.assign(**columns), features)


def summarise(
    scored: ScoredImages,
    real: Mapping[str, Features],
    names: Collection[str],
    settings: ScoreSettings,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Every score of one side with its 95% interval over (class, prompt, image) clusters.

    Args:
        scored: images of one side; real: features of the side's real images, by extractor.
    """
    scores = {}
    n, rng = len(scored.table), np.random.default_rng(seed)
    resamples = list(resample_clusters(_clusters(scored.table), settings.bootstrap_resamples, rng)) if n else []
    for score in (SCORES[name] for name in sorted(names)):
        interval = score.interval(scored, real, resamples, settings, seed)
        found = scored.table.get(f"found_{score.name}")
        missing = 0 if found is None else int((~found).sum())
        summary = Scored(**asdict(interval), n=n, n_missing=missing, lower_is_better=score.lower_is_better)
        scores[score.name] = asdict(summary)
    return scores


def _clusters(table: pd.DataFrame) -> tuple[list[Any], list[Any]]:
    return table["class"].tolist(), table["reference_row"].tolist()


def score_arm(
    scored: ScoredImages, data: CaseData, reference: Reference, names: Sequence[str], settings: ScoreSettings, seed: int
) -> dict[str, Any]:
    """side -> all | held_out -> score -> value, interval and counts."""
    scores: dict[str, Any] = {}
    for side in SIDES:
        real = reference.of_side(data, side)
        rows = (scored.table["side"] == side).to_numpy()
        held_out = rows & (scored.table["part"] == "held_out").to_numpy()
        scores[side] = {
            part: summarise(scored.take(chosen), real, names, settings, seed)
            for part, chosen in (("all", rows), ("held_out", held_out))
            if chosen.sum() > 1
        }
    return scores


class FinalLosses(NamedTuple):
    """A user's denoising losses at the end, at fixed noise."""

    mean: float
    """On the adaptation images."""
    quarters: list[float]
    """The same by quarter of the timesteps, from the least noisy."""
    held_out: float | None
    """On images that it did not train on."""


def kept_losses(losses: Mapping[str, Mapping[str, FinalLosses]]) -> dict[str, dict[str, dict[str, Any]]]:
    """arm -> side -> the user's loss at fixed noise, and the shares of full fine-tuning's fall that are kept.

    Args:
        losses: arm -> side -> losses, of the pretrained and the full arm too.
    """

    def kept(arm: str, side: str) -> dict[str, Any]:
        ends = [losses[name][side] for name in ("pretrained", "full", arm)]
        unseen = [end.held_out for end in ends if end.held_out is not None]
        quarters = zip(*(end.quarters for end in ends), strict=True)
        return {
            "fixed_noise": ends[-1].mean,
            "kept": kept_share(*(end.mean for end in ends)),
            "kept_held_out": kept_share(*unseen) if len(unseen) == len(ends) else None,
            **{f"kept_quarter_{i}": kept_share(*of) for i, of in enumerate(quarters, 1)},
        }

    return {arm: {side: kept(arm, side) for side in sides} for arm, sides in losses.items()}


# --- comparisons ---------------------------------------------------------------------------------------


RIVALS = ("uce", "imma")


def compared_arms(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Every arm against full fine-tuning, each learned mask against the random one of its ratio, ours against rivals.

    An eraser before any fine-tuning is compared with the pretrained model: its gate.
    """
    trained = [arm for arm in map(Arm.parse, arms) if arm.name not in (PRETRAINED, "full")]
    pairs = [(arm.name, PRETRAINED if arm.before else "full") for arm in trained]
    pairs += [(a.name, a.random_twin.name) for a in trained if a.kind.learned and a.random_twin.name in arms]
    ours = [arm for arm in trained if arm.kind.ours and not arm.before]
    pairs += [(arm.name, rival) for arm in ours for rival in RIVALS if rival in arms]
    return pairs


def compare_arms(
    scored: Mapping[str, ScoredImages], names: Sequence[str], n_resamples: int, seed: int
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """score -> side -> "arm - other" -> paired difference, Holm-corrected over both sides' comparisons of the score.

    All scores of a side see the same resamples.
    """
    pairs = compared_arms(list(scored))
    found: dict[str, dict[str, dict[tuple[str, str], Difference]]] = {name: {} for name in names}
    for side in SIDES:
        tables = {arm: s.table[s.table["side"] == side].reset_index(drop=True) for arm, s in scored.items()}
        files = {arm: table["file"].tolist() for arm, table in tables.items()}
        if odd := [arm for arm in files if files[arm] != files["full"]]:
            raise FreezeAsGuardError(f"arms full and {odd[0]} have other images; run `dvc repro -f generate`")
        resamples = list(resample_clusters(_clusters(tables["full"]), n_resamples, np.random.default_rng(seed)))
        for name in names:
            values = {arm: table[name].to_numpy() for arm, table in tables.items()}
            found[name][side] = paired_differences(values, pairs, resamples)
    return {name: _corrected(sides) for name, sides in found.items()}


def _corrected(sides: Mapping[str, Mapping[tuple[str, str], Difference]]) -> dict[str, dict[str, dict[str, Any]]]:
    """side -> "arm - other" -> difference, all of them one family."""
    p_values = iter(holm([d.p for differences in sides.values() for d in differences.values()]))
    return {
        side: {f"{a} - {b}": asdict(replace(d, p_holm=next(p_values))) for (a, b), d in differences.items()}
        for side, differences in sides.items()
    }
