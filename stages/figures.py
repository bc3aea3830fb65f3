"""Draw the masks over the tensors, the loss curves, the trade-off, and the sample grid."""

from freezeasguard.commands import DATA, REPORTS, rendered, run
from freezeasguard.reports.figures import write_figures
from freezeasguard.settings.resolve import read_reported


def main() -> None:
    settings = read_reported("figures")
    models = {name: DATA / "fetched" / case.model for name, case in settings.cases.items()}
    written = write_figures(settings, DATA, REPORTS, models)
    print("\n".join(map(str, written)))
    rendered("figures", written)


if __name__ == "__main__":
    run(main)
