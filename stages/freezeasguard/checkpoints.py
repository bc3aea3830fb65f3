"""What a killed run leaves behind for the very same run to go on from; below data/checkpoints, never an output."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import fingerprint, write_atomically, write_json
from freezeasguard.reading import read_json

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINTS = Path("data/checkpoints")


class Checkpoint:
    """Where a run that may be killed leaves its state; read back only by the very same run."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = dict(identity)
        self._written = time.monotonic()

    def is_due(self, minutes: float | None) -> bool:
        """Whether so many minutes have passed since the last one, or since the start; None: never."""
        return minutes is not None and time.monotonic() - self._written >= 60 * minutes

    def load(self) -> dict[str, Any] | None:
        """The state, on the CPU, or None where there is none of this run (torn and foreign files count as none)."""
        import torch

        try:
            saved = torch.load(self.path, weights_only=True, map_location="cpu")
        except FileNotFoundError:
            return None
        except Exception:  # a torn file raises anything from EOFError to UnpicklingError
            self.clear()
            return None
        known = isinstance(saved, dict) and saved.get("identity") == self.identity
        return saved["state"] if known else None

    def save(self, state: Mapping[str, Any]) -> None:
        import torch

        with write_atomically(self.path) as temporary:
            torch.save({"identity": self.identity, "state": dict(state)}, temporary)
        self._written = time.monotonic()

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)


class Pieces:
    """A folder of whole files that a run makes one by one; what a killed run left of them serves the very same run."""

    MARK = "identity.json"

    def __init__(self, path: Path, identity: Any) -> None:
        """Take up the folder of this run; what another one left there goes."""
        self.path = path
        mark = {"identity": fingerprint(identity)}
        try:
            found = read_json(path / self.MARK, "")
        except FreezeAsGuardError:
            found = None
        if found != mark:
            self.clear()
            write_json(path / self.MARK, mark)

    def clear(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def digest(tensor: Tensor) -> str:
    """SHA-256 over type, shape and values."""
    import hashlib

    content = tensor.detach().cpu().contiguous()
    return hashlib.sha256(f"{content.dtype}{tuple(content.shape)}".encode() + content.numpy().tobytes()).hexdigest()


@contextmanager
def between_steps() -> Iterator[Callable[[], bool]]:
    """Hold SIGTERM back: yields whether it came, so that a loop can leave its state first; it takes effect on leaving.

    A step that is cut in two leaves weights that belong to no step.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
        if came:
            signal.raise_signal(signal.SIGTERM)
