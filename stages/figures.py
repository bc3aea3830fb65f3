"""Draw the masks over the tensors, the loss curves, and the sample grid."""

from freezeasguard.plots import write_figures
from freezeasguard.stage import DATA, REPORTS, load, model_path, run


def main() -> None:
    params = load()
    models = {case: model_path(params, case) for case in params.cases}
    for path in write_figures(params, DATA, REPORTS / "figures", models):
        print(path)


if __name__ == "__main__":
    run(main)
