"""Features of a case's real images, and what the scores read on them: the calibration lines."""

from safetensors.torch import save_file

from freezeasguard.commands import DATA, REPORTS, SCORERS, load, run
from freezeasguard.files import folder_atomically, write_json
from freezeasguard.models.latents import CaseData
from freezeasguard.scores.scoring import Extractors, Reference, calibration


def main(case: str) -> None:
    params = load(case)
    data = CaseData.load(DATA / "latents" / case)
    names = params.domain_of(case).score_names()
    extractors = Extractors(params.score, SCORERS, params.workers)
    reference = Reference.of(data, DATA / "raw" / params.cases[case].domain, names, extractors)
    with folder_atomically(DATA / "reference" / case) as out:
        save_file(reference.to_tensors(), out / "features.safetensors")
    lines = calibration(data, reference, names, extractors, params.seed)
    write_json(REPORTS / "calibration" / f"{case}.json", lines)


if __name__ == "__main__":
    run(main)
