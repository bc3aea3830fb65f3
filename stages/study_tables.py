"""Render the studies that one table is made of: masks and controls, curves, the baselines' settings."""

from freezeasguard.commands import REPORTS, load, run
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.study_report import write_study_report


def main(table: str) -> None:
    params = load()
    if table not in params.study_tables:
        known = ", ".join(params.study_tables) or "none"
        raise FreezeAsGuardError(f"params.yaml has no study table {table!r}; it has {known}")
    for path in write_study_report(params, table, REPORTS):
        print(f"\n{path}\n\n{path.read_text()}")


if __name__ == "__main__":
    run(main)
