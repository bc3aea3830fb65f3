"""DVC's side of a run: which stages there are, which have to run, and what DVC keeps of each.

`dvc repro` runs one stage after the other (treeverse/dvc#755). A stage's life is DVC's own here - the same checks, the
run cache, the same records in dvc.lock - but for its command, which is run elsewhere while other stages begin and end.
All of it happens in one process, so that dvc.lock has one writer.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dvc.dependency.db import AbstractDependency
from dvc.dependency.repo import RepoDependency
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.rwlock import rwlock
from dvc.stage.cache import RunCacheNotFoundError
from dvc.utils.serialize import dump_yaml, load_yaml

from freezeasguard.commands import held_signals
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_atomically


class Command(NamedTuple):
    """What a worker is to run for a stage."""

    text: str
    folder: str
    environment: dict[str, str]


@contextmanager
def told(name: str) -> Iterator[None]:
    """What DVC refuses, in one line."""
    try:
        yield
    except DvcException as error:
        raise FreezeAsGuardError(f"{name}: {' '.join(str(error).split())}") from error


class Pipeline:
    """The stages that `dvc repro TARGETS` would look at, in its order, and how each begins and ends."""

    def __init__(self, root: Path, targets: Sequence[str] = ()) -> None:
        logging.getLogger("dvc").setLevel(logging.WARNING)  # it tells of every write of dvc.lock
        self.repo: Any = Repo(str(root))
        self.lock_file = Path(self.repo.root_dir) / "dvc.lock"
        with self._locked():
            graph = get_active_graph(self.repo.index.graph)
            stages = collect_stages(self.repo, targets or ["dvc.yaml"])
            planned = plan_repro(graph, stages)
        self.stages: dict[str, Any] = {stage.addressing: stage for stage in planned}
        """By address, in the order of a serial run."""
        self.upstream = {
            name: {other.addressing for other in graph.successors(stage)} & self.stages.keys()
            for name, stage in self.stages.items()
        }
        """What each stage waits for."""
        self._known = list(self._lock_stages())
        self._held: dict[str, ExitStack] = {}

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with self.repo.lock:
                yield
        except LockError as error:
            raise FreezeAsGuardError(f"another DVC is at work here: {' '.join(str(error).split())}") from error

    def begin(self, name: str) -> Command | None:
        """What is to be run for the stage; None where nothing is: it did not change, or was in the run cache."""
        stage = self.stages[name]
        with self._locked(), told(name):
            if not stage.changed():
                return None
            if stage.frozen or not stage.cmd:  # DVC only looks whether its outputs are there
                stage.reproduce()
                self._record(stage)
                return None
            stage.remove_outs(ignore_remove=False, force=False)
            try:
                self.repo.stage_cache.restore(stage)
            except RunCacheNotFoundError:
                stage.save_deps()
                self._hold(name)
                return self._command(stage)
            self._keep(stage)
            return None

    def end(self, name: str) -> None:
        """Keep what the stage's command has written: cache, run cache, dvc.lock."""
        self.release(name)
        with self._locked(), told(name):
            self._keep(self.stages[name])

    def _keep(self, stage: Any) -> None:
        """As `dvc.stage.Stage.run` does after the command."""
        uncached = any(not out.use_cache for out in stage.outs if not (out.is_metric or out.is_plot))
        stage.save(run_cache=not uncached)
        stage.commit()
        self._record(stage)

    def _record(self, stage: Any) -> None:
        """In dvc.lock, which DVC writes in place: a Ctrl-C in the midst of it would leave half a file."""
        with held_signals():
            stage.dump(update_pipeline=False)

    def _command(self, stage: Any) -> Command:
        commands = stage.cmd if isinstance(stage.cmd, list) else stage.cmd.splitlines()
        environment = {"DVC_ROOT": self.repo.root_dir, "DVC_STAGE": stage.addressing}
        return Command(" && ".join(commands), str(stage.wdir), environment)

    def _hold(self, name: str) -> None:
        """Tell every other DVC what this stage reads and writes, until it has ended."""
        stage, stack = self.stages[name], ExitStack()
        remote = (RepoDependency, AbstractDependency)
        read = [item.fs_path for item in stage.deps if not isinstance(item, remote)]
        write = [item.fs_path for item in stage.outs]
        hardlink = self.repo.config["core"].get("hardlink_lock", False)
        lock = rwlock(self.repo.tmp_dir, self.repo.fs, f"freezeasguard run {name}", read, write, hardlink)
        with held_signals():  # DVC writes this in place, too
            stack.enter_context(lock)
            self._held[name] = stack

    def release(self, name: str) -> None:
        """Whatever became of its command, the stage reads and writes no more."""
        if stack := self._held.pop(name, None):
            with held_signals():
                stack.close()

    def close(self) -> None:
        for name in list(self._held):
            self.release(name)
        self.repo.close()

    def _lock_stages(self) -> dict[str, Any]:
        return load_yaml(self.lock_file).get("stages", {}) if self.lock_file.is_file() else {}

    def order_lock(self) -> None:
        """Bring dvc.lock into the order in which a serial run would have written it, whichever stage ended first."""
        found = self._lock_stages()
        order = [*self._known, *(name for name in self.stages if name not in self._known)]
        ordered = {name: found[name] for name in order if name in found}
        ordered |= {name: entry for name, entry in found.items() if name not in ordered}
        if list(ordered) == list(found):
            return
        with self._locked(), write_atomically(self.lock_file) as temporary:
            dump_yaml(temporary, {**load_yaml(self.lock_file), "stages": ordered})
