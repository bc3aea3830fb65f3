"""What the scores read on real images: the scale that their values are held against (METHOD, section 7)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from freezeasguard.models.latents import CaseData
from freezeasguard.scores.base import Real, Score
from freezeasguard.scores.extractors import Extractors
from freezeasguard.scores.registry import SCORES
from freezeasguard.scores.scoring import Reference, reference_rows
from freezeasguard.sides import SIDES


def calibration(
    data: CaseData, reference: Reference, names: Collection[str], extractors: Extractors, seed: int
) -> dict[str, Any]:
    """score -> side -> what it reads within a class and against others; and its AUC, where it has one."""
    lines: dict[str, Any] = {}
    for score in (SCORES[name] for name in names if SCORES[name].calibrated):
        lines[score.name] = {side: _side_lines(data, reference, score, side, extractors, seed) for side in SIDES}
        everyone = reference_rows(data)
        own = reference.at(score.extractor, everyone["row"])
        if score.auc_tells and (auc := score.auc(everyone, own)) is not None:
            lines[score.name]["auc"] = auc
    return lines


def _side_lines(
    data: CaseData, reference: Reference, score: Score, side: str, extractors: Extractors, seed: int
) -> dict[str, Any]:
    everyone = reference_rows(data)
    rows = everyone[everyone["side"] == side]
    own, features = (reference.at(score.extractor, table["row"]) for table in (rows, everyone))
    missing = {"n_missing": int((~own["found"]).sum())} if "found" in own else {}
    real = Real(rows, own, everyone, features, extractors.of(score), seed, bool(extractors.settings.per_class))
    return {"n": len(rows), **missing, **score.on_real(real)}
