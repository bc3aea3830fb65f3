"""SSIM, the embedded world's full-reference score, where TOPIQ and LPIPS have no weights in any package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from freezeasguard.scores.rules import PairScore

if TYPE_CHECKING:
    from torch import Tensor

    from freezeasguard.settings.params import Score as ScoreSettings


class SSIM(PairScore):
    """Structural similarity (Wang et al. 2004; package torchmetrics) to the real image of the prompt, 1 for equal ones.

    It compares pixel by pixel and knows nothing of what is shown: it stands in TOPIQ's place, not on its scale.
    """

    name = "ssim"
    label = "SSIM"
    lower_is_better = False
    has_weights = False
    paper_metric, paper_label = "topiq", "TOPIQ"

    def load(self, settings: ScoreSettings, scorers: Path) -> Callable[[Tensor, Tensor], Tensor]:
        from torchmetrics.functional.image import structural_similarity_index_measure

        def similarity(generated: Tensor, real: Tensor) -> Tensor:
            unit = ((images + 1) / 2 for images in (generated, real))  # its constants are made for values of 0..1
            return structural_similarity_index_measure(*unit, data_range=1.0, reduction="none").flatten()

        return similarity

    def weight_files(self, settings: ScoreSettings, scorers: Path) -> list[Path]:
        return []
