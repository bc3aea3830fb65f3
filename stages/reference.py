"""Features of a case's real images, and what the scores read on them: the calibration lines."""

from freezeasguard.commands import CALIBRATION, DATA, FEATURES, SCORERS, Case, Domain, machine, run
from freezeasguard.models.latents import CaseData
from freezeasguard.scores.reference import reference_case
from freezeasguard.settings.resolve import ReferenceSettings, read_settings


def main(case: Case, domain: Domain) -> None:
    settings = read_settings(ReferenceSettings, f"reference/{case}")
    data, raw = CaseData.load(DATA / "latents" / case), DATA / "raw" / domain
    out = DATA / "reference" / case
    reference_case(settings, data, raw, SCORERS, out / FEATURES, out / CALIBRATION, machine().device)


if __name__ == "__main__":
    run(main)
