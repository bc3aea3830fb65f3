"""A grid of experiments: what `dvc exp run --queue -S ...` would queue, each with its stages side by side.

An experiment runs in a clone of HEAD below .dvc/tmp/exps, where DVC's queue runs its own, over the workspace's cache.
It is saved as DVC saves one and fetched, so that `dvc exp show`, `freezeasguard collect` and MLflow find it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from freezeasguard.commands import held_signals
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_json
from freezeasguard.reading import read_json

CLONES = Path(".dvc", "tmp", "exps", "grid")
FINISHED = Path(".dvc", "tmp", "freezeasguard", "experiments.json")
"""Ref of an experiment that ended well -> what was run and the commit it is saved as (see `_record`)."""
PARAMS = "params.yaml"
RUN = (sys.executable, "-c", "from freezeasguard.cli import app; app()", "run")
DVC = (sys.executable, "-m", "dvc")


def combinations(settings: Sequence[str]) -> list[list[str]]:
    """Of DVC's `-S`: ["seed=0,1", "rho=0.5"] -> [["seed=0", "rho=0.5"], ["seed=1", "rho=0.5"]].

    Raises:
        FreezeAsGuardError: a setting is not KEY=VALUE[,VALUE...].
    """
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import get_hydra_sweeps
    from hydra.errors import OverrideParseException

    try:
        return [list(found[PARAMS]) for found in get_hydra_sweeps({PARAMS: list(settings)})]
    except (DvcException, OverrideParseException) as error:
        why = " ".join(str(error).split())
        raise FreezeAsGuardError(f"-S {' -S '.join(settings)}: {why}; write KEY=VALUE or KEY=VALUE,VALUE") from error


def experiment_name(overrides: Sequence[str]) -> str:
    """["seed=1", "mask.preset=paper"] -> "seed-1-mask.preset-paper"."""
    return re.sub(r"[^\w.]", "-", "-".join(overrides)).strip("-.")


def run_grid(
    root: Path, settings: Sequence[str], targets: Sequence[str] = (), arguments: Sequence[str] = ()
) -> dict[str, bool]:
    """Run every combination; experiment -> whether all of its stages ended well.

    An experiment that fails, or is killed, keeps its clone and goes on there when it is run again; one that ended well
    is not run again from the same HEAD, unless for other targets, or it was removed (`dvc exp remove`).

    Args:
        targets: of each `freezeasguard run`; none: all stages.
        arguments: its options: --jobs, --executor.
    Raises:
        FreezeAsGuardError: tracked files differ from HEAD, which every experiment starts from.
    """
    root = root.resolve()
    if _git(root, "status", "--porcelain", "--untracked-files=no"):
        raise FreezeAsGuardError("files that git tracks were edited; commit them: every experiment starts from HEAD")
    head, ended = _git(root, "rev-parse", "HEAD"), {}
    for overrides in combinations(settings):
        name = experiment_name(overrides)
        ref = f"refs/exps/{head[:2]}/{head[2:]}/{name}"
        if _is_finished(root, ref, overrides, targets):
            print(f"experiment {name} has ended well before; `dvc exp remove {name}` has it run again")
            ended[name] = True
            continue
        print(f"experiment {name}")
        clone = _clone(root, name, head, overrides)
        ended[name] = _status([*RUN, *targets, *arguments], clone) == 0
        if ended[name]:
            reports = [part for path in _in_git(clone) for part in ("--include-untracked", path)]
            # Of the targets alone: it commits, as if they had run, all stages that it is not told to leave.
            _call(clone, *DVC, "exp", "save", "-q", "-f", "-n", name, *reports, *targets)
            _git(root, "fetch", "-q", str(clone), f"+{ref}:{ref}")
            write_json(root / FINISHED, _records(root) | {ref: _record(root, ref, overrides, targets)})
            shutil.rmtree(clone)
    return ended


def _status(command: Sequence[str], folder: Path) -> int:
    """Of a run, which is waited for when this process is asked to end, too: it ends its workers.

    In a process group of its own, so that it hears a terminal's Ctrl-C once, from here.
    """
    with subprocess.Popen(command, cwd=folder, process_group=0) as child, held_signals(child.send_signal):
        return child.wait()


def _records(root: Path) -> dict[str, dict[str, object]]:
    path = root / FINISHED
    return read_json(path, "remove it: finished experiments then run again") if path.is_file() else {}


def _record(root: Path, ref: str, overrides: Sequence[str], targets: Sequence[str]) -> dict[str, object]:
    commit = _git(root, "for-each-ref", "--format=%(objectname)", ref)  # "" where there is none
    return {"commit": commit, "overrides": list(overrides), "targets": sorted(targets)}


def _is_finished(root: Path, ref: str, overrides: Sequence[str], targets: Sequence[str]) -> bool:
    """Whether it is there as it was saved, by a run of these targets or of all."""
    found = _records(root).get(ref)
    if found is None:
        return False
    asked = _record(root, ref, overrides, targets)
    return found in (asked, asked | {"targets": []})


def _clone(root: Path, name: str, head: str, overrides: Sequence[str]) -> Path:
    """A clone at `head`, over the workspace's cache, whose params.yaml has the overrides."""
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    folder = root / CLONES / name
    if folder.is_dir() and _git(folder, "rev-parse", "HEAD") != head:
        shutil.rmtree(folder)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        _git(root, "clone", "-q", "--local", str(root), str(folder))
        _git(folder, "checkout", "-q", "--detach", head)
        _share(root, folder)
    _git(folder, "checkout", "-q", head, "--", PARAMS)
    try:
        apply_overrides(str(folder / PARAMS), list(overrides))
    except DvcException as error:
        why = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise FreezeAsGuardError(f"-S {' -S '.join(overrides)}: {why}") from error
    return folder


def _share(root: Path, clone: Path) -> None:
    """The workspace's cache and its own configuration, which git does not have."""
    from dvc.repo import Repo

    own = root / ".dvc" / "config.local"
    if own.is_file():
        shutil.copyfile(own, clone / ".dvc" / "config.local")
    with Repo(str(root)) as workspace, Repo(str(clone)) as repo, repo.config.edit("local") as config:
        config.setdefault("cache", {})["dir"] = workspace.cache.local_cache_dir


def _in_git(clone: Path) -> list[str]:
    """The outputs that DVC leaves to git: the reports, new ones among them."""
    from dvc.repo import Repo

    with Repo(str(clone)) as repo:
        outs = [Path(out.fs_path) for out in repo.index.outs if not out.use_cache]
    return sorted(str(path.relative_to(clone)) for path in outs if path.exists())


def _git(folder: Path, *arguments: str) -> str:
    return _call(folder, "git", *arguments)


def _call(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        shown = " ".join(command[-4:])
        raise FreezeAsGuardError(f"`{shown}` failed in {folder}: {' '.join(done.stderr.split())[-500:]}")
    return done.stdout.strip()
