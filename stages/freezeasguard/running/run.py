"""`freezeasguard run`: what `dvc repro` would run, side by side."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from freezeasguard.commands import terminate
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.running.engine import Engine
from freezeasguard.running.pipeline import Pipeline
from freezeasguard.running.screen import Screen, last_words

LOOK_S = 0.5
"""Between two looks at the logs of running stages."""


@dataclass
class Outcome:
    """What became of the stages, by address."""

    ran: dict[str, float] = field(default_factory=dict)
    """Those whose command ran, with its seconds, waiting for a worker included."""
    kept: list[str] = field(default_factory=list)
    """Those that did not change, or came out of the run cache."""
    failed: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    """Those that stand on a failed one, with its address."""


def run_stages(root: Path, targets: Sequence[str] = (), executor: str = "local", jobs: int | None = None) -> Outcome:
    """Run what `dvc repro` would; dvc.lock and the run cache are left as it would leave them.

    A stage that fails stops those that stand on it, and no others.

    Raises:
        FreezeAsGuardError: another run is at work here, or the executor cannot be made.
    """
    folder = root / ".dvc" / "tmp" / "freezeasguard"
    folder.mkdir(parents=True, exist_ok=True)
    alone = FileLock(folder / "run.lock")
    try:
        alone.acquire(timeout=0)
    except Timeout:
        raise FreezeAsGuardError(f"another `freezeasguard run` is at work in {root.resolve()}; wait for it") from None
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        pipeline = Pipeline(root, targets)
        with Screen(len(pipeline.stages)) as screen:
            return _Run(pipeline, lambda: Engine(executor, jobs, folder / "parsl"), screen, folder / "logs").finish()
    finally:
        signal.signal(signal.SIGTERM, before)
        alone.release()


class _Run:
    """The stages on their way: waiting for others, at work, ended."""

    def __init__(self, pipeline: Pipeline, engine: Callable[[], Engine], screen: Screen, logs: Path) -> None:
        self.pipeline, self.screen, self.logs = pipeline, screen, logs
        self._new_engine, self.engine = engine, None
        self.waiting = {name: set(upstream) for name, upstream in pipeline.upstream.items()}
        self.running: dict[Future[int], tuple[str, float]] = {}
        self.outcome = Outcome()

    def finish(self) -> Outcome:
        try:
            while self.waiting or self.running:
                self._begin_what_can()
                if self.running:
                    self._end_what_has()
            self.pipeline.order_lock()
            return self.outcome
        finally:
            if self.engine is not None:
                self.engine.close()
            self.pipeline.close()

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def _begin_what_can(self) -> None:
        """In the order of a serial run; what needs no command ends at once, and lets others begin."""
        while ready := [name for name, upstream in self.waiting.items() if not upstream]:
            for name in ready:
                if self.engine is not None and len(self.running) >= self.engine.slots:
                    return
                del self.waiting[name]
                self._begin(name)

    def _begin(self, name: str) -> None:
        try:
            command = self.pipeline.begin(name)
        except FreezeAsGuardError as error:
            self._failed(name, str(error))
            return
        if command is None:
            self.outcome.kept.append(name)
            self._ended(name, "as it was")
            return
        self.engine = self.engine or self._new_engine()
        self.log(name).unlink(missing_ok=True)
        self.screen.began(name)
        self.running[self.engine.submit(command, self.log(name))] = name, time.perf_counter()

    def _end_what_has(self) -> None:
        done, _ = wait(self.running, timeout=LOOK_S, return_when=FIRST_COMPLETED)
        self.screen.show({name: self.log(name) for name, _ in self.running.values()})
        for future in sorted(done, key=lambda future: self.running[future]):
            name, start = self.running.pop(future)
            self._end(name, future, time.perf_counter() - start)

    def _end(self, name: str, future: Future[int], seconds: float) -> None:
        error = future.exception()
        status = None if error else future.result()
        try:
            if error is not None:
                raise FreezeAsGuardError(f"its worker was lost ({type(error).__name__}: {error})")
            if status != 0:
                raise FreezeAsGuardError(f"exit code {status}: {last_words(self.log(name))}")
            self.pipeline.end(name)
        except FreezeAsGuardError as failure:
            self.pipeline.release(name)
            self._failed(name, str(failure))
            return
        self.outcome.ran[name] = seconds
        self._ended(name, f"{seconds:.1f} s")

    def _ended(self, name: str, how: str) -> None:
        for upstream in self.waiting.values():
            upstream.discard(name)
        self.screen.ended(name, how)

    def _failed(self, name: str, why: str) -> None:
        self.outcome.failed[name] = why
        self.screen.ended(name, f"failed, {why}")
        standing = {name}
        for other in self.pipeline.stages:  # each after what it stands on
            if other in self.waiting and self.pipeline.upstream[other] & standing:
                standing.add(other)
                del self.waiting[other]
                self.outcome.left[other] = name
                self.screen.ended(other, f"left out, it stands on {name}")
