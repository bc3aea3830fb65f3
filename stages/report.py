"""One page with the tables, the figures and the mask's diagnostics."""

from freezeasguard.report import write_report
from freezeasguard.stage import DATA, REPORTS, load, run


def main() -> None:
    print(write_report(load(), DATA, REPORTS))


if __name__ == "__main__":
    run(main)
