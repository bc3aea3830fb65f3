"""Render the studies: a table a domain, the baselines' sweep, and the curves."""

from freezeasguard.stage import REPORTS, load, run
from freezeasguard.study_report import write_study_report


def main() -> None:
    for path in write_study_report(load(), REPORTS):
        print(f"\n{path}\n\n{path.read_text()}")


if __name__ == "__main__":
    run(main)
