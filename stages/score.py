"""Score the images of a case's arms: a row an image, each score with its interval, and the arms compared."""

from freezeasguard.commands import DATA, REPORTS, SCORERS, Case, Domain, run
from freezeasguard.models.latents import CaseData
from freezeasguard.scores.score import score_case
from freezeasguard.settings.resolve import ScoreSettings, read_settings


def main(case: Case, domain: Domain) -> None:
    settings = read_settings(ScoreSettings, f"score/{case}")
    data = CaseData.load(DATA / "latents" / case)
    folders = {name: DATA / name / case for name in ("images", "adapted", "reference")}
    folders |= {"raw": DATA / "raw" / domain, "scorers": SCORERS}
    score_case(
        settings,
        data,
        **folders,
        out=DATA / "scores" / case,
        reports=REPORTS / "scores" / case,
    )


if __name__ == "__main__":
    run(main)
