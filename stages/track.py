"""Mirror the experiment into MLflow, a child run a cell; a cell that is there already is left alone."""

from freezeasguard.commands import DATA, REPORTS, run
from freezeasguard.reports.track import track_cells
from freezeasguard.settings.resolve import read_reported


def main() -> None:
    new, known = track_cells(read_reported("track"), DATA, REPORTS)
    print(f"MLflow: {new} runs logged, {known} known already. Look at them with")
    print("  mlflow ui --backend-store-uri sqlite:///mlflow.db")
    print("  http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning")


if __name__ == "__main__":
    run(main)
