"""Fill in params.yaml's presets and defaults: one file of settings a stage and cell, which DVC watches."""

from freezeasguard.commands import run
from freezeasguard.settings.params import load_params
from freezeasguard.settings.pins import pinned, read_pins
from freezeasguard.settings.profiles import check_cells
from freezeasguard.settings.resolve import SETTINGS, write_settings


def main() -> None:
    params = load_params()
    check_cells(params)
    n_files = write_settings(pinned(params, read_pins()))
    print(f"{n_files} files of settings in {SETTINGS}; `freezeasguard check` says where each came from")


if __name__ == "__main__":
    run(main)
