"""What every learned mask is made of: its signal, its saturation, and whom it agrees with."""

from freezeasguard.commands import DATA, REPORTS, load, run
from freezeasguard.reports.masks import write_mask_report


def main() -> None:
    for path in write_mask_report(load(), DATA, REPORTS):
        print(f"\n{path}\n\n{path.read_text()}")


if __name__ == "__main__":
    run(main)
