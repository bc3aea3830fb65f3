"""Score the images of one cell: a row an image, and each score with its interval."""

import pandas as pd
from safetensors.torch import load_file

from freezeasguard.data.latents import SIDES, CaseData
from freezeasguard.files import folder_atomically, write_json
from freezeasguard.scoring import Extractors, positions, score_images, score_names, summarise
from freezeasguard.stage import DATA, REPORTS, SCORERS, load, run


def main(case: str, arm: str) -> None:
    params = load(case)
    data = CaseData.load(DATA / "latents" / case)
    folder = DATA / "images" / case / arm
    real = load_file(DATA / "reference" / case / "features.safetensors")
    table = pd.read_csv(folder / "index.csv", keep_default_na=False)
    scored, features = score_images(table, folder, real, Extractors(SCORERS, params.workers))
    names = score_names(params.domains[params.cases[case].domain])
    scores = {}
    for side in SIDES:
        rows = (scored["side"] == side).to_numpy()
        targets = data.rows(side, ["adaptation", "held_out"])["row"].to_numpy()
        real_side = real["efficientnet"][positions(real, targets)].numpy()
        scores[side] = {}
        for part, chosen in (("all", rows), ("held_out", rows & (scored["part"] == "held_out").to_numpy())):
            if chosen.sum() > 1:
                chosen_rows = scored[chosen].reset_index(drop=True)
                resamples = params.score.bootstrap_resamples
                scores[side][part] = summarise(chosen_rows, features[chosen], real_side, names, resamples, params.seed)
    with folder_atomically(DATA / "scores" / case / arm) as out:
        scored.to_csv(out / "images.csv", index=False)
    write_json(REPORTS / "scores" / case / f"{arm}.json", scores)


if __name__ == "__main__":
    run(main)
