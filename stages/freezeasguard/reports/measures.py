"""What every report asks of a cell's scores: the score that speaks for a side, its fall, and what is kept of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from freezeasguard.arms import PRETRAINED, Arm
from freezeasguard.reading import read_json
from freezeasguard.scores.kept import kept_share
from freezeasguard.scores.registry import SCORES, side_score
from freezeasguard.settings.params import Params
from freezeasguard.sides import SIDES

LEAST_SCORE_CHANGE = 0.05
"""As LEAST_FALL of a loss, for scores: they rest on a few generated images a side, so that less is noise."""


def fall_of_quality(name: str, before: float, after: float) -> float:
    """Percent by which image quality fell; nan from a score that is not above 0: an amount that no image shows."""
    if before <= 0:
        return math.nan
    return 100 * (after / before - 1) * (1 if SCORES[name].lower_is_better else -1)


def percent(fall: float) -> str:
    return "-" if math.isnan(fall) else f"{fall:+.1f}%"


def score_entry(name: str, score: dict[str, Any]) -> str:
    """A score with its interval, and how many images lack what it looks for."""
    kind = SCORES[name]
    text = f"{score['value']:.{kind.digits}f} [{score['low']:.{kind.digits}f}, {score['high']:.{kind.digits}f}]"
    missing = f" ({score['n_missing']} of {score['n']} without a {kind.missing})"
    return text + (missing if score["n_missing"] else "")


def read_scores(reports: Path, case: str, arm: str) -> dict[str, Any]:
    return read_json(reports / "scores" / case / f"{arm}.json", f"run `dvc repro score@{case}`", keys=SIDES)


def read_losses(adapted: Path, side: str) -> list[float]:
    """The loss of every step of a user's training."""
    return read_json(adapted / f"{side}.json", "run `dvc repro adapt`", keys=("losses",))["losses"]


@dataclass(frozen=True)
class CaseScores:
    """A case's scores by arm, read when they are asked for; a missing cell is an error."""

    params: Params
    case: str
    reports: Path

    @cached_property
    def by_arm(self) -> dict[str, dict[str, Any]]:
        return {arm.name: read_scores(self.reports, self.case, arm.name) for arm in self.params.arms(self.case)}

    @property
    def names(self) -> tuple[str, ...]:
        return self.params.domain_of(self.case).score_names()

    def speaks_for(self, side: str) -> str:
        return side_score(self.names, side, self.params.roles)

    def score(self, arm: Arm | str, side: str) -> dict[str, Any]:
        """Value, interval and counts of the score that speaks for the side."""
        return self.by_arm[str(getattr(arm, "name", arm))][side]["all"][self.speaks_for(side)]

    def kept_loss(self, arm: Arm, side: str) -> float | None:
        return self.by_arm[arm.name][side]["loss"]["kept"]

    def kept_score(self, arm: Arm, side: str) -> float | None:
        """As `kept_loss`, of the side's score; None where full fine-tuning hardly betters it."""
        # Where a score rises with quality, its negative is what falls.
        sign = 1 if SCORES[self.speaks_for(side)].lower_is_better else -1
        ends = [sign * self.score(name, side)["value"] for name in (PRETRAINED, "full", arm)]
        return kept_share(*ends, least_fall=LEAST_SCORE_CHANGE)

    def fall(self, arm: Arm, side: str, key: str = "value") -> float:
        """Percent by which quality fell against full fine-tuning; `key`: low or high, an end of the arm's interval."""
        return fall_of_quality(self.speaks_for(side), self.score("full", side)["value"], self.score(arm, side)[key])

    def gap(self, arm: Arm) -> float:
        """Points of percent by which the illegal side fell further than the legal one."""
        illegal, legal = (self.fall(arm, side) for side in SIDES)
        return illegal - legal
