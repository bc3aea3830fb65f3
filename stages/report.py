"""One page with the tables, the figures and the mask's diagnostics."""

from freezeasguard.commands import DATA, REPORTS, rendered, run
from freezeasguard.reports.report import write_report
from freezeasguard.settings.resolve import read_reported


def main() -> None:
    page = write_report(read_reported("report"), REPORTS, DATA)
    print(page)
    rendered("report", [page])


if __name__ == "__main__":
    run(main)
