"""One page with the tables, the figures and the mask's diagnostics."""

from freezeasguard.commands import DATA, REPORTS, load, run
from freezeasguard.reports.report import write_report


def main() -> None:
    print(write_report(load(), DATA, REPORTS))


if __name__ == "__main__":
    run(main)
