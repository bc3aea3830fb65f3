"""What every stage command shares: its paths, its parameters, and how its errors are shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.fetch import check_model_folder
from freezeasguard.settings.params import Params, check_cells, load_params

DATA = Path("data")
REPORTS = Path("reports")
SCORERS = DATA / "models" / "scorers"


def run(command: Callable[..., Any]) -> None:
    """Run a stage's command under Typer; an expected error is one line and exit code 1."""
    import gc

    import typer

    gc.freeze()  # what was imported stays anyway
    gc.enable()
    # The networks are small: one thread is faster, and leaves the other core to the cell's other side.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        typer.run(command)
    except FreezeAsGuardError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def model_path(params: Params, case: str) -> Path:
    """The case's model folder, checked; the stage `fetch` brings hub models there."""
    return check_model_folder(model_folder(params, params.cases[case].model))


def model_folder(params: Params, model: str) -> Path:
    return params.models[model].path or DATA / "hub" / model


def load(case: str | None = None) -> Params:
    """The checked parameters; an unknown case is refused here, and a data/cells.json of other cases."""
    params = load_params()
    check_cells(params)
    if case is not None and case not in params.cases:
        raise FreezeAsGuardError(f"params.yaml has no case {case!r}; it has {', '.join(params.cases)}")
    return params
