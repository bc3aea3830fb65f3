"""What a run shows: every stage at work with its last words, and how far the whole is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

TAIL_BYTES = 400


def last_words(log: Path) -> str:
    """The last line of a log, which a progress bar may have written over and over."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    return lines[-1] if lines else ""


class Screen:
    """On a terminal a line a running stage; elsewhere a line for each that ends."""

    def __init__(self, n_stages: int) -> None:
        self.console = Console(stderr=True, width=None if os.isatty(2) else 120)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[words]}", markup=False),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.whole = self.progress.add_task("stages", total=n_stages, words="")
        self.n_stages, self.n_ended = n_stages, 0
        self.lines: dict[str, Any] = {}

    def __enter__(self) -> Screen:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def began(self, name: str) -> None:
        self.lines[name] = self.progress.add_task(name, total=None, words="")

    def ended(self, name: str, how: str) -> None:
        self.n_ended += 1
        self.progress.advance(self.whole)
        if name in self.lines:
            self.progress.remove_task(self.lines.pop(name))
        self.console.print(f"[{self.n_ended}/{self.n_stages}] {name}: {how}", markup=False, highlight=False)

    def show(self, logs: Mapping[str, Path]) -> None:
        if self.console.is_terminal:
            for name, log in logs.items():
                self.progress.update(self.lines[name], words=last_words(log)[-60:])
