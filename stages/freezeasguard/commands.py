"""What every stage command shares: its paths, its arguments, and how its errors are shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_json

DATA = Path("data")
REPORTS = Path("reports")
SCORERS = DATA / "models" / "scorers"

Domain = Annotated[str, typer.Argument(help="A domain of params.yaml, e.g. portraits.")]
Model = Annotated[str, typer.Argument(help="A model of params.yaml, e.g. tiny-1.5.")]
Case = Annotated[str, typer.Argument(help="A case of params.yaml, e.g. portraits.")]
AnArm = Annotated[str, typer.Argument(help="An arm of the case, e.g. full, uce-before, random-70.")]


def run(command: Callable[..., Any]) -> None:
    """Run a stage's command under Typer; an expected error is one line and exit code 1."""
    import gc

    gc.freeze()  # what was imported stays anyway
    gc.enable()
    # The networks are small: one thread is faster, and leaves the other core to the cell's other side.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    command.__doc__ = command.__doc__ or sys.modules[command.__module__].__doc__
    try:
        typer.run(command)
    except FreezeAsGuardError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


class Machine(NamedTuple):
    """What params.yaml says of the machine: no stage is run again for it, as no result depends on it."""

    device: str
    workers: int


def machine() -> Machine:
    from freezeasguard.settings.blocks import MachineBlock
    from freezeasguard.settings.reading import read_yaml, validated
    from freezeasguard.workers import resolve_device

    path = Path("params.yaml")
    values = read_yaml(path)
    found = validated(MachineBlock, {key: values[key] for key in MachineBlock.model_fields if key in values}, path)
    return Machine(resolve_device(found.device), found.workers)


def rendered(stage: str, files: list[Path]) -> None:
    """Leave a mark outside git, so that a fresh clone renders once though its reports came with git."""
    write_json(DATA / "rendered" / f"{stage}.json", [str(path) for path in files])
