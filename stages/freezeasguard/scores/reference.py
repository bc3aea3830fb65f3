"""Features of a case's real images, and what the scores read on them: the calibration lines."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from freezeasguard.files import folder_atomically, write_json
from freezeasguard.models.latents import CaseData
from freezeasguard.scores.scoring import Extractors, Reference, calibration
from freezeasguard.settings.resolve import ReferenceSettings


def reference_case(
    settings: ReferenceSettings, data: CaseData, raw: Path, scorers: Path, out: Path, lines: Path, threads: int
) -> None:
    extractors = Extractors(settings.score, scorers, threads)
    reference = Reference.of(data, raw, settings.scores, extractors)
    with folder_atomically(out) as folder:
        save_file(reference.to_tensors(), folder / "features.safetensors")
    write_json(lines, calibration(data, reference, settings.scores, extractors, settings.seed))
