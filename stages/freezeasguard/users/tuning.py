"""`freezeasguard tune`: how an attacker trains best, by full fine-tuning alone and on images held out.

An attacker who trains too fast, too briefly or too long keeps less than one could: what a protection then seems to take
away is the optimiser's noise. No protection is looked at here, so that the choice favours none.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from freezeasguard.files import folder_atomically, write_json
from freezeasguard.models.batches import fixed_noise_loss
from freezeasguard.models.computing import configure
from freezeasguard.models.diffusion import NoiseSchedule, load_scheduler, load_unet, load_vae
from freezeasguard.models.generate import generate_user, prompt_table
from freezeasguard.models.latents import CaseData
from freezeasguard.models.protected import Protected
from freezeasguard.reading import read_json
from freezeasguard.reports.drawing import matplotlib_pyplot, save_figure
from freezeasguard.scores.extractors import Extractors
from freezeasguard.scores.registry import SCORES
from freezeasguard.scores.scoring import Reference, score_images, summarise
from freezeasguard.seeds import seed_of
from freezeasguard.settings.compute import Compute
from freezeasguard.settings.params import Score as ScoreSettings
from freezeasguard.settings.users import Adapt, Generate
from freezeasguard.sides import SIDES
from freezeasguard.users.registry import attacker
from freezeasguard.workers import one_thread, run_side_by_side

MEASURED = ("adaptation", "held_out")


@dataclass(frozen=True)
class Run:
    """A side's user after full fine-tuning: losses over the published model's, at the same draws."""

    side: str
    lr: float
    steps: int
    adaptation: float
    held_out: float
    score: float | None = None
    """Of images that the user generates, by the score that speaks for the side."""


@dataclass(frozen=True)
class Judge:
    """What a user is scored with: images of their side's prompts, by the score that speaks for the side."""

    names: dict[str, str]
    """The score by side."""
    generate: Generate
    settings: ScoreSettings
    reference: Reference
    raw: Path
    scorers: Path

    def score(self, unet: torch.nn.Module, task: Task, side: str) -> float:
        table = prompt_table(task.data, side, self.generate)
        vae: Any = load_vae(task.model)
        with TemporaryDirectory() as folder:
            how = (self.generate, task.seed, f"{side} side", task.compute)
            generate_user(unet, vae.to(task.device), task.data, table, task.model, Path(folder), *how)
            extractors = Extractors(self.settings, self.scorers, 1, task.device, task.compute)
            name = self.names[side]
            scored = score_images(table, Path(folder), self.raw, task.data, self.reference, [name], extractors)
            real = self.reference.of_side(task.data, side)
            return float(summarise(scored, real, [name], self.settings, task.seed)[name]["value"])


@dataclass(frozen=True)
class Task:
    """All that a run depends on but its rate and its steps."""

    model: Path
    data: CaseData
    config: Adapt
    seed: int
    device: str = "cpu"
    compute: Compute = Compute()
    judge: Judge | None = None

    @cached_property
    def published_losses(self) -> dict[str, dict[str, float]]:
        """Of the published model, by side and part; asked for before any process is forked, it is taken once."""
        configure(self.compute, self.device)
        one_thread(self.device)  # as those who train, whose losses are compared to these
        unet = load_unet(self.model).to(self.device)
        return {side: self._losses(unet, side) for side in SIDES}

    def _losses(self, unet: torch.nn.Module, side: str) -> dict[str, float]:
        """The denoising loss by part, at the same draws in every call."""
        schedule = NoiseSchedule.of(load_scheduler(self.model))

        def loss(part: str) -> float:
            draws = torch.Generator().manual_seed(seed_of(self.seed, "tune, losses"))
            return fixed_noise_loss(unet, schedule, self.data.select(side, [part]), draws)

        return {part: loss(part) for part in MEASURED}

    def train(
        self, side: str, config: Adapt, stream: Sequence[str | int], protected: Protected | None = None
    ) -> tuple[torch.nn.Module, dict[str, tuple[float, float]]]:
        """A side's user, and by part the denoising loss before and after they trained, at the same draws.

        Args:
            stream: what the user draws from, beside the seed and the side.
            protected: None for the model as published; the loss before is that model's in any case.
        """
        configure(self.compute, self.device)
        unet = load_unet(self.model).to(self.device)
        draws = torch.Generator().manual_seed(seed_of(self.seed, *stream, side))
        label = f"{side} user at {config.lr:g}, {config.steps} steps"
        how = {"generator": draws, "compute": self.compute, "description": label}
        start, attack = protected or Protected("full"), attacker(config.attacker)
        schedule = NoiseSchedule.of(load_scheduler(self.model))
        attack(unet, start, schedule, self.data.select(side, ["adaptation"]), config, self.device, **how)
        before, after = self.published_losses[side], self._losses(unet, side)
        return unet, {part: (before[part], after[part]) for part in MEASURED}

    def run(self, side: str, lr: float, steps: int) -> Run:
        """The published model itself at 0 steps."""
        unet, found = self.train(side, self.config.model_copy(update={"lr": lr, "steps": steps}), ["tune"])
        losses = {name: round(after / before, 5) for name, (before, after) in found.items()}
        score = round(self.judge.score(unet, self, side), 5) if self.judge else None
        return Run(side, lr, steps, **losses, score=score)


def best(runs: Sequence[Run]) -> tuple[float, int]:
    """Rate and steps of the lowest held-out loss, as the mean over both sides; of equals the fewest steps.

    Both sides' users train alike: a rate for each would make the sides' difference one of rates. The score stands
    beside it, and does not decide: it rests on few images, and may well be what a protection is judged by.
    """
    return _least([run for run in runs if run.steps], [run.held_out for run in runs if run.steps])


def best_by_score(runs: Sequence[Run], *, lower_is_better: bool) -> tuple[float, int]:
    """Rate and steps of the best score, as the mean over the sides in `runs`; of equals the fewest steps."""
    scored = [(run, run.score) for run in runs if run.steps and run.score is not None]
    return _least([run for run, _ in scored], [score if lower_is_better else -score for _, score in scored])


def _least(runs: Sequence[Run], values: Sequence[float]) -> tuple[float, int]:
    of: dict[tuple[int, float], list[float]] = {}
    for run, value in zip(runs, values, strict=True):
        of.setdefault((run.steps, run.lr), []).append(value)
    steps, lr = min(sorted(of), key=lambda place: sum(of[place]) / len(of[place]))
    return lr, steps


def tune(task: Task, lrs: Sequence[float], steps: Sequence[int], out: Path, workers: int) -> list[Run]:
    """Every rate with every number of steps, for both sides; writes `out`/runs.csv and `out`/curves.png.

    Each is a run of its own: a user who stops at 60 steps is not one who goes on to 90. With a judge, the published
    model is scored as well: a run of 0 steps.
    """
    trained = [(lr, n) for lr in sorted(lrs) for n in sorted(steps)]
    _ = task.published_losses
    grid = [(side, *place) for side in SIDES for place in [*([(0.0, 0)] if task.judge else []), *trained]]
    with folder_atomically(out) as temporary:
        paths = {place: temporary / f"{i}.json" for i, place in enumerate(grid)}
        tasks = {
            str(place): lambda place=place, path=path: write_json(path, asdict(task.run(*place)))
            for place, path in paths.items()
        }
        run_side_by_side(tasks, workers, task.device)
        runs = [Run(**read_json(path, "run it again")) for path in paths.values()]
        for path in paths.values():
            path.unlink()
        with (temporary / "runs.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(runs[0])), lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(run) for run in runs)
        named = {side: SCORES[name].label for side, name in task.judge.names.items()} if task.judge else {}
        curves(runs, temporary / "curves.png", named)
    return runs


def curves(runs: Sequence[Run], path: Path, scores: Mapping[str, str]) -> Path:
    """Losses over steps, a colour a rate; drawn through on held-out images; below, each side's score, where any is."""
    plt = matplotlib_pyplot()
    rows = 2 if scores else 1
    shared = "row" if len(set(scores.values())) < 2 else False
    figure, grid = plt.subplots(rows, 2, figsize=(9, 3.4 * rows), sharey=shared, squeeze=False)
    for column, side in enumerate(SIDES):
        mine = [run for run in runs if run.side == side]
        published = [run.score for run in mine if not run.steps]
        for color, lr in enumerate(sorted({run.lr for run in mine if run.steps})):
            own = sorted((run for run in mine if run.lr == lr and run.steps), key=lambda run: run.steps)
            steps, how = [0, *(run.steps for run in own)], {"color": f"C{color}"}
            grid[0][column].plot(steps, [1.0, *(run.held_out for run in own)], "o-", label=f"{lr:g}", **how)
            grid[0][column].plot(steps, [1.0, *(run.adaptation for run in own)], "o:", **how)
            if scores:
                grid[1][column].plot(steps, [*published, *(run.score for run in own)], "o-", **how)
        grid[0][column].set_title(f"Full fine-tuning, {side} side")
        grid[-1][column].set_xlabel("steps")
        if scores:
            grid[1][column].set_ylabel(scores[side])
    grid[0][0].set_ylabel("denoising loss over the published model's")
    grid[0][1].legend(title="learning rate (dotted: images trained on)", fontsize=7)
    figure.tight_layout()
    return save_figure(figure, path)
