"""Render the paper's tables - our values with intervals, the paper's beside them - and what the masks are made of."""

from freezeasguard.commands import DATA, REPORTS, rendered, run
from freezeasguard.reports.gather import gather_scores
from freezeasguard.reports.tables import write_tables
from freezeasguard.settings.resolve import read_reported


def main() -> None:
    params = read_reported("tables")
    gather_scores(params, DATA, REPORTS)
    written = write_tables(params, REPORTS, DATA)
    for path in written:
        print(f"\n{path}\n\n{path.read_text()}")
    rendered("tables", written)


if __name__ == "__main__":
    run(main)
