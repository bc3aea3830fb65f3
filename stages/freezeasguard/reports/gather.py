"""The scores that git keeps: copies, below `reports/`, of what the stages `score` and `reference` left in `data/`.

Those two keep their results in outputs that DVC caches, so that going back to an old value, or a clone beside a full
cache, scores nothing again; what stands in git cannot be such an output.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from freezeasguard.commands import CALIBRATION, SUMMARIES
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import folder_atomically
from freezeasguard.settings.params import Params


def gather_scores(params: Params, data: Path, reports: Path) -> None:
    """Fill `reports/scores/CASE/` and `reports/calibration/CASE.json` with those of the cases of params.yaml alone."""
    with folder_atomically(reports / "scores") as scores, folder_atomically(reports / "calibration") as calibration:
        for case in params.cases:
            for source, target, stage in (
                (data / "scores" / case / SUMMARIES, scores / case, "score"),
                (data / "reference" / case / CALIBRATION, calibration / f"{case}.json", "reference"),
            ):
                if not source.exists():
                    raise FreezeAsGuardError(f"{source} is missing; run `dvc repro {stage}@{case}`")
                shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
