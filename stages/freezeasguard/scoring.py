"""From images to scores: one row an image, one value with its interval a score."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from freezeasguard.config import Domain
from freezeasguard.data.latents import SIDES, CaseData
from freezeasguard.images import read_images
from freezeasguard.metrics.clip import ClipFeatures, clip_score
from freezeasguard.metrics.frechet import EfficientNetFeatures, frechet_distance
from freezeasguard.metrics.recogniser import PRESENCE_THRESHOLD, Recogniser, identity_distance, pair_auc
from freezeasguard.statistics import bootstrap_interval

LOWER_IS_BETTER = {"recogniser": True, "fd_efficientnet_lite0": True, "clip_tiny": False}
"""The scores of the embedded portraits, by the name of what measures them, with the direction of quality."""


@dataclass(frozen=True)
class Score:
    value: float
    low: float
    high: float
    n: int
    """Images the value rests on."""
    n_missing: int
    """Of those, images in which no figure was found; they are embedded and scored all the same."""
    lower_is_better: bool


class Extractors:
    """The networks of the embedded scores, loaded once."""

    def __init__(self, scorers: Path, threads: int) -> None:
        torch.set_num_threads(threads)  # one process: it may use every core
        self.recogniser = Recogniser.load(scorers)
        self.clip = ClipFeatures(scorers / "clip")
        self.efficientnet = EfficientNetFeatures()


def real_features(data: CaseData, raw: Path, extractors: Extractors) -> dict[str, Any]:
    """Features of the case's real images that no mask was learned from, by `row` of the index.

    They are the references of the prompts and the target of the Fréchet distance.
    """
    index = data.index[data.index["part"] != "mask_learning"]
    images = read_images(raw / path for path in index["path"])
    embedding, presence = extractors.recogniser.extract(images)
    features = torch.from_numpy(extractors.efficientnet(images))
    rows = torch.tensor(index["row"].to_numpy())
    return {"row": rows, "recogniser": embedding, "presence": presence, "efficientnet": features}


def positions(real: dict[str, Any], rows: np.ndarray) -> torch.Tensor:
    """Where the index rows stand in the real features."""
    where = {int(row): i for i, row in enumerate(real["row"])}
    return torch.tensor([where[int(row)] for row in rows])


def score_images(
    table: pd.DataFrame, folder: Path, real: dict[str, Any], extractors: Extractors
) -> tuple[pd.DataFrame, np.ndarray]:
    """The table with a distance, a presence and a CLIP score an image; and the images' Fréchet features.

    The recogniser knows drawn figures alone: `summarise` leaves it out where a domain shows anything else.
    """
    images = read_images(folder / file for file in table["file"])
    embedding, presence = extractors.recogniser.extract(images)
    reference = real["recogniser"][positions(real, table["reference_row"].to_numpy())]
    prompts = table["caption"].tolist()
    scored = table.assign(
        recogniser=identity_distance(embedding, reference).numpy(),
        found=(presence > PRESENCE_THRESHOLD).numpy(),
        clip_tiny=clip_score(extractors.clip.images(images), extractors.clip.texts(prompts)).numpy(),
    )
    return scored, extractors.efficientnet(images)


def score_names(domain: Domain) -> tuple[str, ...]:
    """The scores that mean something for a domain."""
    figures = ("recogniser",) if domain.source == "embedded-figures" else ()
    return (*figures, "fd_efficientnet_lite0", "clip_tiny")


def summarise(
    scored: pd.DataFrame,
    features: np.ndarray,
    real_features: np.ndarray,
    names: Collection[str],
    n_resamples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Every score of one side with its 95% interval over (class, prompt, image) clusters.

    Args:
        scored: rows of one side; features: [n, d], their Fréchet features; real_features: [m, d], of the
            side's real images; names: of the scores wanted (see `score_names`).
    """
    clusters = (scored["class"].tolist(), scored["reference_row"].tolist())

    def mean_of(name: str) -> Callable[[np.ndarray], float]:
        values = scored[name].to_numpy()
        return lambda rows: float(values[rows].mean())

    statistics = {name: mean_of(name) for name in ("recogniser", "clip_tiny")}
    statistics["fd_efficientnet_lite0"] = lambda rows: frechet_distance(features[rows], real_features)
    statistics = {name: statistics[name] for name in names}
    scores = {}
    for name, statistic in sorted(statistics.items()):
        rng = np.random.default_rng(seed)
        interval = bootstrap_interval(statistic, clusters, n_resamples=n_resamples, rng=rng)
        missing = int((~scored["found"]).sum()) if name == "recogniser" else 0
        score = Score(**asdict(interval), n=len(scored), n_missing=missing, lower_is_better=LOWER_IS_BETTER[name])
        scores[name] = asdict(score)
    return scores


def calibration(data: CaseData, real: dict[str, Any]) -> dict[str, Any]:
    """What the distance reads on real images: one class against itself, against others, and its AUC."""
    lines: dict[str, Any] = {}
    for side in SIDES:
        rows = data.rows(side, ["adaptation", "held_out"])
        where = positions(real, rows["row"].to_numpy())
        embeddings = real["recogniser"][where]
        labels = torch.from_numpy(pd.factorize(rows["class"])[0])
        distance = 1 - embeddings @ embeddings.T
        same = (labels[:, None] == labels[None]) & ~torch.eye(len(labels), dtype=torch.bool)
        other = labels[:, None] != labels[None]
        lines[side] = {
            "real_vs_real": float(distance[same].mean()),
            "real_vs_other": float(distance[other].mean()) if other.any() else None,
            "auc": pair_auc(embeddings, labels) if other.any() else None,
            "n": len(rows),
            "n_missing": int((real["presence"][where] <= PRESENCE_THRESHOLD).sum()),
        }
    return {"recogniser": lines}
