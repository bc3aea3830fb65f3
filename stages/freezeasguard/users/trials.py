"""Users who are trained outside the pipeline, for commands that ask what training itself does: a file a run and side.

What they keep is measured by the mean of several full fine-tunings: one alone is as much chance as what it measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from freezeasguard.checkpoints import digest
from freezeasguard.files import write_json
from freezeasguard.models.diffusion import model_hash, stored_tensors
from freezeasguard.models.protected import Protected
from freezeasguard.reading import read_json
from freezeasguard.scores.kept import kept_share
from freezeasguard.settings.code import code_of
from freezeasguard.settings.users import Adapt
from freezeasguard.sides import SIDES
from freezeasguard.users.registry import ATTACKERS
from freezeasguard.users.tuning import Task
from freezeasguard.workers import run_side_by_side


@dataclass(frozen=True)
class Trial:
    protected: Protected
    config: Adapt
    stream: tuple[str | int, ...]
    """What its users draw from, beside the seed and the side."""


@dataclass(frozen=True)
class Trials:
    """Runs of both sides' users, each kept in a file until the whole is done."""

    task: Task
    folder: Path
    workers: int

    def run(self, trials: Mapping[str, Trial]) -> dict[str, dict[str, dict[str, Any]]]:
        """By the trials' names, which tell them apart: side -> part -> [loss before, loss after]."""
        paths = {(name, side): self.folder / f"{name}-{side}.json" for name in trials for side in SIDES}

        def work(trial: Trial, side: str, path: Path) -> Any:
            return lambda: write_json(path, self.task.train(side, trial.config, trial.stream, trial.protected)[1])

        missing = {
            f"{name}, {side}": work(trials[name], side, path)
            for (name, side), path in paths.items()
            if not path.is_file()
        }
        if missing:
            _ = self.task.published_losses  # before the fork
            run_side_by_side(missing, self.workers, self.task.device)
        return {
            name: {side: read_json(paths[name, side], f"remove {self.folder}") for side in SIDES} for name in trials
        }


def identity(task: Task, module: str) -> dict[str, Any]:
    """All that the runs of a command's `module` depend on, but for what a trial itself says: its name must."""
    return {
        "config": task.config.model_dump(exclude={"checkpoint_steps", "checkpoint_minutes"}),
        "seed": task.seed,
        "model": model_hash(stored_tensors(task.model)),
        "data": [digest(task.data.latents), digest(task.data.text), task.data.index.to_csv()],
        "compute": task.compute.model_dump(),
        "code": code_of("adapt", (module, ATTACKERS[task.config.attacker])),
        "torch": str(torch.__version__),
    }


def kept_of(records: Sequence[Mapping[str, Any]], full: Sequence[Mapping[str, Any]], part: str = "adaptation") -> float:
    """The mean over users' runs of what is kept of full fine-tuning's mean fall of the loss; nan without a fall."""
    before, after = (float(np.mean([run[part][end] for run in full])) for end in (0, 1))
    shares = [kept_share(before, after, run[part][1]) for run in records]
    return float(np.mean([np.nan if share is None else share for share in shares]))
