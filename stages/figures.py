"""Draw the masks over the tensors, the loss curves, and the sample grid."""

from freezeasguard.commands import DATA, REPORTS, load, model_path, run
from freezeasguard.reports.figures import write_figures


def main() -> None:
    params = load()
    models = {case: model_path(params, case) for case in params.cases}
    for path in write_figures(params, DATA, REPORTS / "figures", models):
        print(path)


if __name__ == "__main__":
    run(main)
