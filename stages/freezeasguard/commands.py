"""What every stage command shares: its paths, its arguments, and how its errors are shown."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import typer

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import remove_leftovers, write_json
from freezeasguard.warm import quiet

DATA = Path("data")
REPORTS = Path("reports")
SCORERS = DATA / "models" / "scorers"
FEATURES, CALIBRATION = "features", "calibration.json"
"""In a case's folder below data/reference."""
SUMMARIES = "summaries"
"""In a case's folder below data/scores: an arm's scores, and the arms compared."""
ENDING = (signal.SIGINT, signal.SIGTERM)
"""Signals by which a command is asked to end."""

Domain = Annotated[str, typer.Argument(help="A domain of params.yaml, e.g. portraits.")]
Model = Annotated[str, typer.Argument(help="A model of params.yaml, e.g. tiny-1.5.")]
Case = Annotated[str, typer.Argument(help="A case of params.yaml, e.g. portraits.")]
AnArm = Annotated[str, typer.Argument(help="An arm of the case, e.g. full, uce-before, random-70.")]


def run(command: Callable[..., Any]) -> None:
    """Run a stage's command under Typer; an expected error is one line and exit code 1.

    SIGTERM ends it as Ctrl-C does: children are ended and temporary files removed on the way out.
    """
    import gc

    keep_weights_here()
    gc.freeze()  # what was imported stays anyway
    gc.enable()
    # The networks are small: one thread is faster, and leaves the other core to the cell's other side.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    quiet()
    signal.signal(signal.SIGTERM, terminate)
    remove_leftovers(DATA, REPORTS)
    command.__doc__ = command.__doc__ or sys.modules[command.__module__].__doc__
    try:
        typer.run(command)
    except FreezeAsGuardError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def keep_weights_here() -> None:
    """What DeepFace, torch.hub and pyiqa look for lies in data/weights, which DVC watches, and not in one's home."""
    for name in ("DEEPFACE", "TORCH"):
        os.environ.setdefault(f"{name}_HOME", str((DATA / "weights" / name.lower()).absolute()))


def terminate(number: int, _: Any) -> NoReturn:
    """A handler of signals: leave as Ctrl-C does, through what has to be put in order."""
    signal.signal(number, signal.SIG_IGN)  # a second one must not cut the cleaning short
    raise SystemExit(128 + number)


@contextmanager
def held_signals(meanwhile: Callable[[int], object] = lambda number: None) -> Iterator[None]:
    """SIGINT and SIGTERM take effect at the end: what others' code writes until then is written whole.

    Args:
        meanwhile: is called with the first that comes.
    """
    heard: list[int] = []

    def hear(number: int, _: Any) -> None:
        heard.append(number)
        if len(heard) == 1:
            meanwhile(number)

    before = {number: signal.signal(number, hear) for number in ENDING if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in heard[:1]:
            signal.raise_signal(number)


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
