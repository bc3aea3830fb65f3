"""Counts of a domain's images - in, out and why - with Figure 15 and a contact sheet."""

from freezeasguard.commands import DATA, REPORTS, Domain, run
from freezeasguard.reports.survey import survey_domain
from freezeasguard.settings.resolve import SurveySettings, read_settings


def main(domain: Domain) -> None:
    settings = read_settings(SurveySettings, f"survey/{domain}")
    raw, splits = DATA / "raw" / domain, DATA / "splits" / domain
    counts = survey_domain(raw, splits, REPORTS / "data" / domain, blurred=settings.explicit)
    print(f"{domain}: {counts['in']} in, {counts['kept']} kept, {counts['rejected'] or 'none rejected'}")


if __name__ == "__main__":
    run(main)
