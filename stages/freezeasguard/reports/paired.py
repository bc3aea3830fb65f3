"""Two arms on the same prompts and noise: how far quality fell, and whether there is anything that could fall."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from freezeasguard.arms import PRETRAINED, Arm
from freezeasguard.reading import read_table
from freezeasguard.reports.measures import CaseScores, fall_of_quality
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.params import Params

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True)
class Measured:
    """A figure, in percent but for a `gain`, with the interval that decides; n is what it rests on."""

    value: float
    low: float
    high: float
    n: int
    of: str = "images"

    @classmethod
    def over_users(cls, percents: list[float]) -> Measured | None:
        """Their mean, between the smallest and the largest."""
        if not percents:
            return None
        return cls(sum(percents) / len(percents), min(percents), max(percents), len(percents), "users")


@dataclass(frozen=True)
class Images:
    """The scores of a case's images, an arm's table each, and THE bootstrap's resamples of a side."""

    params: Params
    case: str
    data: Path

    @cached_property
    def _tables(self) -> dict[str, pd.DataFrame]:
        return {}

    @cached_property
    def _resamples(self) -> dict[str, list[np.ndarray]]:
        return {}

    @cached_property
    def _gains(self) -> dict[tuple[str, str], Measured]:
        return {}

    def of(self, arm: Arm, side: str) -> pd.DataFrame:
        """Rows in the same order in every arm: one prompt and one noise each."""
        if arm.name not in self._tables:
            path = self.data / "scores" / self.case / "images" / f"{arm.name}.csv"
            names = self.params.domain_of(self.case).score_names()
            columns = ("file", "side", "class", *(name for name in names if SCORES[name].an_image))
            table = read_table(path, f"run `dvc repro -f score@{self.case}`", columns, ("reference_row",))
            self._tables[arm.name] = table.sort_values("file", kind="stable")
        table = self._tables[arm.name]
        return table.loc[table["side"] == side].reset_index(drop=True)

    def resamples(self, side: str, table: pd.DataFrame) -> list[np.ndarray]:
        import numpy as np

        from freezeasguard.scores.statistics import resample_clusters

        if side not in self._resamples:
            clusters = (table["class"].tolist(), table["reference_row"].tolist())
            n, rng = self.params.score.comparison_resamples, np.random.default_rng(self.params.seed)
            self._resamples[side] = list(resample_clusters(clusters, n, rng))
        return self._resamples[side]

    def fall(self, pairs: list[tuple[Arm, Arm]], side: str, name: str) -> Measured:
        """Percent by which the first arm's quality is below the second's; of two pairs, the first's less the second's.

        Both arms of a resample hold the same prompts and noise.
        """
        import numpy as np

        from freezeasguard.scores.statistics import bootstrap_interval

        tables = {arm: self.of(arm, side) for pair in pairs for arm in pair}
        values = {arm: table[name].to_numpy(float) for arm, table in tables.items()}

        def statistic(rows: np.ndarray) -> float:
            with np.errstate(divide="ignore", invalid="ignore"):  # a score of nothing found may be 0
                own, *less = (fall_of_quality(name, values[b][rows].mean(), values[a][rows].mean()) for a, b in pairs)
            return float(own - sum(less))

        table = tables[pairs[0][0]]
        interval = bootstrap_interval(statistic, len(table), self.resamples(side, table))
        return Measured(interval.value, interval.low, interval.high, len(table))

    def gain(self, side: str, name: str) -> Measured:
        """By how much full fine-tuning betters the pretrained model's score, in the score's units."""
        from freezeasguard.scores.statistics import bootstrap_interval

        if (side, name) in self._gains:
            return self._gains[side, name]
        full, pretrained = (self.of(Arm.parse(arm), side) for arm in ("full", PRETRAINED))
        sign = -1 if SCORES[name].lower_is_better else 1
        better = sign * (full[name].to_numpy(float) - pretrained[name].to_numpy(float))
        interval = bootstrap_interval(lambda rows: float(better[rows].mean()), len(full), self.resamples(side, full))
        self._gains[side, name] = Measured(interval.value, interval.low, interval.high, len(full))
        return self._gains[side, name]

    def no_signal(self, side: str, name: str) -> str:
        """Why no verdict can stand on a score of images; "" where the whole interval of the gain lies above 0."""
        gain, digits = self.gain(side, name), SCORES[name].digits
        if gain.low > 0:
            return ""
        return (
            f"no signal: Full FT betters it by {gain.value:+.{digits}f} "
            f"[{gain.low:+.{digits}f}, {gain.high:+.{digits}f}]"
        )


def no_signal(scores: CaseScores, side: str, images: Images) -> str:
    """Why nothing can be said of a side by the score that speaks for it; "" where something can.

    A distance of sets has no paired images: there the two intervals must lie apart.
    """
    name = scores.speaks_for(side)
    if SCORES[name].an_image:
        return images.no_signal(side, name)
    full, pretrained = (scores.score(arm, side) for arm in ("full", PRETRAINED))
    better, worse = (full, pretrained) if SCORES[name].lower_is_better else (pretrained, full)
    if better["high"] < worse["low"]:
        return ""
    return "no signal: the intervals of Full FT and of the pretrained model touch, or Full FT's is the worse"
