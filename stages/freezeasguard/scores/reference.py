"""The stage `reference`: features of a case's real images, and what the scores read on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from freezeasguard.files import folder_atomically, write_json
from freezeasguard.models.latents import CaseData
from freezeasguard.scores.calibration import calibration
from freezeasguard.scores.extractors import Extractors
from freezeasguard.scores.scoring import REFERENCE_FILE, Reference

if TYPE_CHECKING:
    from freezeasguard.settings.resolve import ReferenceSettings


def reference_case(
    settings: ReferenceSettings, data: CaseData, raw: Path, scorers: Path, out: Path, lines: Path, device: str = "cpu"
) -> None:
    """Write the features into the folder `out`, and the calibration lines into the file `lines`.

    Beside the lines, by score, stands "weights": the SHA-256 of every file that the scores' networks come from.

    Args:
        raw: the folder of the domain's images; scorers: that of the embedded networks.
    """
    extractors = Extractors(settings.score, scorers, device=device, compute=settings.compute)
    reference = Reference.of(data, raw, settings.scores, extractors)
    with folder_atomically(out) as folder:
        save_file(reference.to_tensors(), folder / REFERENCE_FILE)
    by_score = calibration(data, reference, settings.scores, extractors, settings.seed)
    write_json(lines, {**by_score, "weights": extractors.weight_hashes(settings.scores)})
