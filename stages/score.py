"""Score the images of a case's arms: a row an image, each score with its interval, and the arms compared."""

from pathlib import Path

import pandas as pd
from safetensors.torch import load_file
from tqdm.auto import tqdm

from freezeasguard.commands import DATA, REPORTS, SCORERS, load, run
from freezeasguard.files import folder_atomically, read_json, write_json
from freezeasguard.models.latents import CaseData
from freezeasguard.scores.registry import SCORES
from freezeasguard.scores.scoring import Extractors, Reference, compare_arms, kept_losses, score_arm, score_images
from freezeasguard.sides import SIDES


def main(case: str) -> None:
    params = load(case)
    data = CaseData.load(DATA / "latents" / case)
    names = params.domain_of(case).score_names()
    extractors = Extractors(params.score, SCORERS, params.workers)
    reference = Reference.from_tensors(load_file(DATA / "reference" / case / "features.safetensors"))
    kept = kept_losses({arm: read_fixed_noise_losses(DATA / "adapted" / case / arm) for arm in params.arms(case)})
    raw, scored = DATA / "raw" / params.cases[case].domain, {}
    with folder_atomically(DATA / "scores" / case) as out, folder_atomically(REPORTS / "scores" / case) as metrics:
        for arm in tqdm(params.arms(case), desc=f"scoring {case}"):
            folder = DATA / "images" / case / arm
            table = pd.read_csv(folder / "index.csv", keep_default_na=False)
            scored[arm] = score_images(table, folder, raw, data, reference, names, extractors)
            scored[arm].table.to_csv(out / f"{arm}.csv", index=False)
            scores = score_arm(scored[arm], data, reference, names, params.score, params.seed)
            write_json(metrics / f"{arm}.json", {side: {"loss": kept[arm][side], **scores[side]} for side in scores})
        of_images = [name for name in names if SCORES[name].an_image]
        differences = compare_arms(scored, of_images, params.score.comparison_resamples, params.seed)
        write_json(metrics / "differences.json", differences)


def read_fixed_noise_losses(adapted: Path) -> dict[str, float]:
    return {side: read_json(adapted / f"{side}.json", "run `dvc repro adapt`")["fixed_noise_loss"] for side in SIDES}


if __name__ == "__main__":
    run(main)
