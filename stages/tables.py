"""Render the paper's tables: our values with intervals, the paper's beside them."""

from freezeasguard.commands import REPORTS, load, run
from freezeasguard.reports.tables import write_tables


def main() -> None:
    for path in write_tables(load(), REPORTS):
        print(f"\n{path}\n\n{path.read_text()}")


if __name__ == "__main__":
    run(main)
