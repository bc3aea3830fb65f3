"""Generate the images of both sides' prompts from the adapted models of one arm."""

import pandas as pd

from freezeasguard.commands import DATA, load, model_path, run
from freezeasguard.files import folder_atomically
from freezeasguard.models.generate import generate_side, prompt_table
from freezeasguard.models.latents import CaseData
from freezeasguard.models.protected import load_adapted
from freezeasguard.sides import SIDES
from freezeasguard.workers import resolve_device, run_side_by_side


def main(case: str, arm: str) -> None:
    params = load(case)
    model = model_path(params, case)
    data = CaseData.load(DATA / "latents" / case)
    tables = {side: prompt_table(data, side, params.generate) for side in SIDES}
    device = resolve_device(params.device)
    with folder_atomically(DATA / "images" / case / arm) as out:

        def side_task(side: str) -> None:
            unet = load_adapted(model, DATA / "adapted" / case / arm, side).to(device)
            generate_side(unet, data, tables[side], model, out, params.generate, params.seed, f"{case} {arm} {side}")

        tasks = {side: (lambda side=side: side_task(side)) for side in SIDES}
        run_side_by_side(tasks, params.workers, device)
        pd.concat(list(tables.values())).to_csv(out / "index.csv", index=False)


if __name__ == "__main__":
    run(main)
