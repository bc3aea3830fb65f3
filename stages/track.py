"""Mirror every cell into MLflow, one run a cell; a cell that is there already is left alone."""

from freezeasguard.stage import DATA, REPORTS, load, run
from freezeasguard.tracking import track_cells


def main() -> None:
    new, known = track_cells(load(), DATA, REPORTS)
    print(f"MLflow: {new} runs logged, {known} known already; see `mlflow ui --backend-store-uri sqlite:///mlflow.db`")


if __name__ == "__main__":
    run(main)
