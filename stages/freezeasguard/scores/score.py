"""The scores of a case's arms: a row an image, each score with its interval, and the arms compared."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from safetensors.torch import load_file
from tqdm.auto import tqdm

from freezeasguard.files import folder_atomically, read_json, write_json
from freezeasguard.models.latents import CaseData
from freezeasguard.scores.registry import SCORES
from freezeasguard.scores.scoring import Extractors, Reference, compare_arms, kept_losses, score_arm, score_images
from freezeasguard.settings.resolve import ScoreSettings
from freezeasguard.sides import SIDES


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
    threads: int,
) -> None:
    names, seed, scored = settings.scores, settings.seed, {}
    extractors = Extractors(settings.score, scorers, threads)
    real = Reference.from_tensors(load_file(reference / "features.safetensors"))
    kept = kept_losses({arm: read_fixed_noise_losses(adapted / arm) for arm in settings.arms})
    with folder_atomically(out) as tables, folder_atomically(reports) as metrics:
        for arm in tqdm(settings.arms, desc="scoring"):
            table = pd.read_csv(images / arm / "index.csv", keep_default_na=False)
            scored[arm] = score_images(table, images / arm, raw, data, real, names, extractors)
            scored[arm].table.to_csv(tables / f"{arm}.csv", index=False)
            scores = score_arm(scored[arm], data, real, names, settings.score, seed)
            write_json(metrics / f"{arm}.json", {side: {"loss": kept[arm][side], **scores[side]} for side in scores})
        of_images = [name for name in names if SCORES[name].an_image]
        differences = compare_arms(scored, of_images, settings.score.comparison_resamples, seed)
        write_json(metrics / "differences.json", differences)


def read_fixed_noise_losses(adapted: Path) -> dict[str, float]:
    return {side: read_json(adapted / f"{side}.json", "run `dvc repro adapt`")["fixed_noise_loss"] for side in SIDES}
