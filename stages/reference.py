"""Features of a case's real images, and what the scores read on them: the calibration lines."""

from safetensors.torch import save_file

from freezeasguard.data.latents import CaseData
from freezeasguard.files import folder_atomically, write_json
from freezeasguard.scoring import Extractors, calibration, real_features, score_names
from freezeasguard.stage import DATA, REPORTS, SCORERS, load, run


def main(case: str) -> None:
    params = load(case)
    data = CaseData.load(DATA / "latents" / case)
    features = real_features(data, DATA / "raw" / params.cases[case].domain, Extractors(SCORERS, params.workers))
    with folder_atomically(DATA / "reference" / case) as out:
        save_file({name: f.contiguous() for name, f in features.items()}, out / "features.safetensors")
    figures = "recogniser" in score_names(params.domains[params.cases[case].domain])
    lines = calibration(data, features) if figures else {}
    write_json(REPORTS / "scores" / case / "real.json", lines)


if __name__ == "__main__":
    run(main)
