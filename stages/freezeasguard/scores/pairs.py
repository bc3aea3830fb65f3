"""Full-reference scores: TOPIQ and LPIPS, each generated image against the real image of its prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from freezeasguard.scores.rules import PairScore

if TYPE_CHECKING:
    from freezeasguard.scores.networks.pairs import Lpips, Topiq
    from freezeasguard.settings.params import Score as ScoreSettings


class TOPIQ(PairScore):
    name = "topiq"
    label = "TOPIQ"
    lower_is_better = False
    paper_metric, paper_label = "topiq", "TOPIQ"

    def load(self, settings: ScoreSettings, scorers: Path) -> Topiq:
        from freezeasguard.scores.networks.pairs import Topiq

        return Topiq(settings.topiq_weights)

    def weight_files(self, settings: ScoreSettings, scorers: Path) -> list[Path]:
        from freezeasguard.scores.networks.pairs import topiq_download

        return [settings.topiq_weights or topiq_download()]


class LPIPS(PairScore):
    name = "lpips"
    label = "LPIPS"
    paper_metric, paper_label = "lpips", "LPIPS"

    def load(self, settings: ScoreSettings, scorers: Path) -> Lpips:
        from freezeasguard.scores.networks.pairs import Lpips

        return Lpips()

    def weight_files(self, settings: ScoreSettings, scorers: Path) -> list[Path]:
        from freezeasguard.scores.networks.pairs import lpips_weights

        return lpips_weights()
