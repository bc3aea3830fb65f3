"""The stage `score`: a row an image, each score of an arm with its interval, and the arms compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from freezeasguard.files import folder_atomically, write_json
from freezeasguard.models.latents import CaseData
from freezeasguard.reading import read_json, read_table, read_tensors
from freezeasguard.scores.extractors import Extractors
from freezeasguard.scores.registry import SCORES
from freezeasguard.scores.scoring import (
    REFERENCE_FILE,
    FinalLosses,
    Reference,
    compare_arms,
    kept_losses,
    score_arm,
    score_images,
)
from freezeasguard.sides import SIDES

if TYPE_CHECKING:
    from freezeasguard.settings.resolve import ScoreSettings


def score_case(
    settings: ScoreSettings,
    data: CaseData,
    *,
    images: Path,
    adapted: Path,
    reference: Path,
    raw: Path,
    scorers: Path,
    out: Path,
    reports: Path,
    device: str = "cpu",
) -> None:
    """Write a table of images an arm into the folder `out`, and scores and paired differences into `reports`.

    Args:
        images, adapted: the case's folders with a folder an arm; reference: the one that `reference_case` wrote.
        raw: the folder of the domain's images; scorers: that of the embedded networks.
    """
    block, names = settings.score, settings.scores
    extractors = Extractors(block, scorers, device=device, compute=settings.compute)
    real = Reference.from_tensors(
        read_tensors(reference / REFERENCE_FILE, f"run `dvc repro -f reference@{images.name}`")
    )
    kept = kept_losses({arm: read_final_losses(adapted / arm) for arm in settings.arms})
    scored, columns = {}, ("file", "side", "class", "part", "caption")
    with folder_atomically(out) as tables, folder_atomically(reports) as metrics:
        for arm in tqdm(settings.arms, desc=f"scoring {images.name}"):
            remedy = f"run `dvc repro -f generate@{images.name}-{arm}`"
            table = read_table(images / arm / "index.csv", remedy, columns, ("reference_row", "image"))
            scored[arm] = score_images(table, images / arm, raw, data, real, names, extractors)
            scored[arm].table.to_csv(tables / f"{arm}.csv", index=False)
            scores = score_arm(scored[arm], data, real, names, block, settings.seed)
            write_json(metrics / f"{arm}.json", {side: {"loss": kept[arm][side], **scores[side]} for side in scores})
        of_images = [name for name in names if SCORES[name].an_image]
        differences = compare_arms(scored, of_images, block.comparison_resamples, settings.seed)
        write_json(metrics / "differences.json", differences)


def read_final_losses(adapted: Path) -> dict[str, FinalLosses]:
    """side -> the user's losses at the end, at fixed noise."""
    keys, remedy = ("fixed_noise_loss", "fixed_noise_quarters", "held_out_loss"), "run `dvc repro adapt`"
    found = {side: read_json(adapted / f"{side}.json", remedy, keys=keys) for side in SIDES}
    return {side: FinalLosses(*(record[key] for key in keys)) for side, record in found.items()}
