"""`freezeasguard rehearse`: fabricate what the hub would give, then run every stage of a profile over it, in a copy."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.rehearsal import blip2, models, scorers, sets
from freezeasguard.rehearsal.plan import IMAGES_PER_CLASS, SMALL_PX, WEIGHTS, Plan, face_models, rehearsed
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.profiles import profile_names, profile_text, write_params
from freezeasguard.settings.reading import parse_yaml, read_yaml

CPU_PX = 128
"""Of full-width models without a GPU: 512 px would take a VAE half a minute an image."""
LOG = "repro.log"
DVC = (sys.executable, "-m", "dvc")
RUNNING = re.compile(r"^Running stage '([^']+)'")


def rehearse(name: str, to: Path, *, small: bool, size_px: int | None = None, few: bool = False) -> list[str]:
    """Rehearse a profile, or a params.yaml by path, in the folder `to`; returns lines to print.

    The files lie in `to/hub`, the project's copy in `to/project`; a killed rehearsal goes on when it is called again.

    Raises:
        FreezeAsGuardError: a stage failed, did not run, or left an output out.
    """
    values = _values(name)
    plan = rehearsed(values, to / "hub", size_px or _default_px(small), few, scorers.unavailable(list(SCORES)))
    if not small:
        plan.values["workers"] = 1  # a user of Stable Diffusion takes 14 GiB and more
    project = copy_project(Path.cwd(), to / "project")
    environment = fabricate(plan, to / "hub", project, small)
    text = io.StringIO()
    _dump(plan.values, text)
    write_params(text.getvalue(), project / "params.yaml")
    seconds = repro(project, to / LOG, environment)
    made = check_outputs(project, plan, seconds)
    return [*(f"note: {line}" for line in plan.notes), *_lines(seconds, made)]


def _values(name: str) -> dict[str, Any]:
    path = Path(name)
    if name in profile_names():
        return parse_yaml(profile_text(name), Path(f"profile {name}"))
    if path.suffix in (".yaml", ".yml"):
        return read_yaml(path)
    raise FreezeAsGuardError(
        f"there is no profile {name!r} to rehearse; choose one of {', '.join(profile_names())}, or name a .yaml file"
    )


def _default_px(small: bool) -> int | None:
    """None: the profile's own."""
    import torch

    if small:
        return SMALL_PX
    return None if torch.cuda.is_available() else CPU_PX


def _dump(values: dict[str, Any], stream: io.StringIO) -> None:
    from ruamel.yaml import YAML

    YAML(typ="safe").dump(values, stream)


def copy_project(root: Path, folder: Path) -> Path:
    """What git tracks of the project at `root`, as its working tree has it, without results; nothing there is touched.

    Its files are written again at every call: an edit is rehearsed, and only the stages that it changes run again.
    """
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode or not (root / "dvc.yaml").is_file():
        raise FreezeAsGuardError(f"{root} is no clone of FreezeAsGuard; call `freezeasguard rehearse` in one")
    for name in filter(None, listed.stdout.split("\0")):
        result = name.startswith(("reports/", "tests/")) and not name.startswith("reports/study/")
        if not result and name != "dvc.lock" and (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    # Gigabytes of weights need not lie in the workspace and in the cache.
    (folder / ".dvc" / "config.local").write_text("[cache]\n    type = hardlink,copy\n")
    return folder


def fabricate(plan: Plan, hub: Path, project: Path, small: bool) -> dict[str, str]:
    """Make all that the plan names; returns the environment in which the stages find what has no key in params.yaml."""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(hub / "hf")}
    pieces = list(_pieces(plan, hub, project / WEIGHTS, small, environment))
    for make in tqdm(pieces, desc="making what the hub would give"):
        make()
    return environment


def _pieces(plan: Plan, hub: Path, weights: Path, small: bool, environment: dict[str, str]) -> Iterator[Any]:
    """What makes each file or folder, to be called."""
    for name, told in plan.models.items():
        yield lambda name=name, told=told: models.stable_diffusion(
            hub / "models" / name, models.release_of(told), small
        )
    for sources in plan.domains.values():
        for source in sources:
            yield lambda source=source: make_set(source)
    if any(domain.caption for domain in plan.params.domains.values()):
        yield lambda: models.once(blip2.save_tiny_blip2)(hub / "blip2")
    of_files = {
        "csd_weights": lambda path: scorers.csd(path, small),
        "nudenet_weights": scorers.nudenet,
        "inception_weights": scorers.inception,
        "topiq_weights": scorers.topiq,
        "clip_folder": lambda path: models.clip(path, small),
    }
    for key, make in of_files.items():
        if value := plan.values["score"].get(key):
            yield lambda make=make, value=value: make(weights / Path(value).name)
    if faces := face_models(plan.scores):
        environment["DEEPFACE_HOME"] = str(weights / "deepface")
        yield lambda: scorers.deepface(weights / "deepface", faces, plan.params.score.face_detector)
    if "lpips" in plan.scores:
        environment["TORCH_HOME"] = str(weights / "torch")
        yield lambda: scorers.lpips(weights / "torch")


def make_set(source: dict[str, Any]) -> None:
    pictures = getattr(sets, source["pictures"])(source["classes"], IMAGES_PER_CLASS, source["size_px"])
    if source["layout"] == "ff25":
        sets.ff25(source["to"], pictures)
    elif source["layout"] == "parquet":
        columns = source["image"], source["caption"], source["class"]
        sets.hub_parquet(source["to"], pictures, *columns, source["split"])
    else:
        sets.class_folders(source["to"], pictures)


def stage_names(project: Path) -> set[str]:
    """Every stage and cell but the frozen one, whose output ships with the project."""
    listed = subprocess.run([*DVC, "stage", "list", "--name-only"], cwd=project, capture_output=True, text=True)
    if listed.returncode:
        raise FreezeAsGuardError(f"DVC cannot read the stages in {project}: {listed.stderr.strip()[-500:]}")
    return set(listed.stdout.split()) - {"pretrain"}


def repro(project: Path, log: Path, environment: dict[str, str]) -> dict[str, float]:
    """`dvc repro` with progress: stage or cell -> seconds, of all calls in this folder.

    Raises:
        FreezeAsGuardError: a stage failed; the log, to which later calls add, has all that was printed.
    """
    binaries = Path(sys.executable).parent
    environment = {**os.environ, **environment, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONUNBUFFERED"] = "1"
    n_stages = len(stage_names(project))
    current, since, tail = "", time.monotonic(), []
    with (
        log.open("a", buffering=1) as file,
        tqdm(total=n_stages, desc="dvc repro") as bar,
    ):
        process = subprocess.Popen(
            [*DVC, "repro"],
            cwd=project,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if found := RUNNING.match(line):
                _note(file, current, since)
                current, since = found[1], time.monotonic()
                bar.set_postfix_str(current)
                bar.update()
            file.write(line)
            tail = [*tail[-19:], line.rstrip()]
        failed = process.wait()
        if not failed:
            _note(file, current, since)
    if failed:
        errors = [line for line in tail if line.startswith(("error: ", "ERROR: "))] or tail[-3:]
        raise FreezeAsGuardError(f"the stage {current or 'settings'} failed: {' '.join(errors)} (all of it: {log})")
    took = re.findall(r"^rehearsed (\S+) in ([\d.]+) s$", log.read_text(), re.MULTILINE)
    return {stage: float(seconds) for stage, seconds in took}


def _note(file: Any, stage: str, since: float) -> None:
    if stage:
        file.write(f"rehearsed {stage} in {time.monotonic() - since:.2f} s\n")


def check_outputs(project: Path, plan: Plan, seconds: dict[str, float]) -> dict[str, tuple[int, int]]:
    """Stage or cell -> files and bytes that it made.

    Raises:
        FreezeAsGuardError: a stage never ran, or an output of one, or a table of a case, is not there.
    """
    import yaml

    wanted = stage_names(project)
    locked = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    if skipped := sorted(wanted - (seconds.keys() & locked.keys())):
        raise FreezeAsGuardError(f"{len(skipped)} stages did not run, e.g. {skipped[0]}; see {project.parent / LOG}")
    made: dict[str, tuple[int, int]] = {}
    for stage in sorted(wanted):
        files = [path for out in locked[stage]["outs"] for path in _files(project / out["path"], stage)]
        made[stage] = len(files), sum(path.stat().st_size for path in files)
    tables = {f"table{case.table}" if case.table else f"case-{name}" for name, case in plan.params.cases.items()}
    if missing := sorted(name for name in tables if not list((project / "reports" / "tables").glob(f"{name}*.md"))):
        raise FreezeAsGuardError(f"reports/tables holds no {missing[0]}.md; see {project / 'reports' / 'tables'}")
    return made


def _files(path: Path, stage: str) -> list[Path]:
    found = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if not found:
        raise FreezeAsGuardError(f"the stage {stage} left its output {path} out or empty")
    return found


def _lines(seconds: dict[str, float], made: dict[str, tuple[int, int]]) -> list[str]:
    """A line a stage, its cells together."""
    cells: dict[str, list[str]] = {}
    for cell in made:
        cells.setdefault(cell.partition("@")[0], []).append(cell)
    return [
        f"{stage:10} {sum(seconds[cell] for cell in own):8.1f} s  {len(own):3} cells  "
        f"{sum(made[cell][0] for cell in own):6} files  {sum(made[cell][1] for cell in own) / 2**20:9.1f} MiB"
        for stage, own in cells.items()
    ]
