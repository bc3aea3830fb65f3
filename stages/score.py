"""Score the images of a case's arms: a row an image, each score with its interval, and the arms compared."""

from freezeasguard.commands import DATA, FEATURES, SCORERS, SUMMARIES, Case, Domain, machine, run
from freezeasguard.models.latents import CaseData
from freezeasguard.scores.score import score_case
from freezeasguard.settings.resolve import ScoreSettings, read_settings


def main(case: Case, domain: Domain) -> None:
    settings = read_settings(ScoreSettings, f"score/{case}")
    data = CaseData.load(DATA / "latents" / case)
    folders = {name: DATA / name / case for name in ("images", "adapted")}
    folders |= {"reference": DATA / "reference" / case / FEATURES, "raw": DATA / "raw" / domain, "scorers": SCORERS}
    out = DATA / "scores" / case
    score_case(
        settings,
        data,
        **folders,
        out=out / "images",
        reports=out / SUMMARIES,
        device=machine().device,
    )


if __name__ == "__main__":
    run(main)
