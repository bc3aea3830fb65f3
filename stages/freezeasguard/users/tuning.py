"""`freezeasguard tune`: how an attacker trains best, by full fine-tuning alone and on images held out.

An attacker who trains too fast, too briefly or too long keeps less than one could: what a protection then seems to take
away is the optimiser's noise. No protection is looked at here, so that the choice favours none.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from freezeasguard.files import folder_atomically, write_json
from freezeasguard.models.batches import fixed_noise_loss
from freezeasguard.models.computing import configure
from freezeasguard.models.diffusion import NoiseSchedule, load_scheduler, load_unet
from freezeasguard.models.latents import CaseData, LatentSet
from freezeasguard.reading import read_json
from freezeasguard.reports.drawing import matplotlib_pyplot, save_figure
from freezeasguard.seeds import seed_of
from freezeasguard.settings.compute import Compute
from freezeasguard.settings.users import Adapt
from freezeasguard.sides import SIDES
from freezeasguard.users.training import finetune
from freezeasguard.workers import run_side_by_side


@dataclass(frozen=True)
class Run:
    """A side's user after full fine-tuning: losses over the published model's, at the same draws."""

    side: str
    lr: float
    steps: int
    adaptation: float
    held_out: float


@dataclass(frozen=True)
class Task:
    """All that a run depends on but its rate and its steps."""

    model: Path
    data: CaseData
    config: Adapt
    seed: int
    device: str = "cpu"
    compute: Compute = Compute()

    def losses(
        self, side: str, config: Adapt, stream: Sequence[str | int], frozen: Collection[str] = ()
    ) -> dict[str, tuple[float, float]]:
        """Part -> the denoising loss before and after a side's user trained, at the same draws.

        Args:
            stream: what the user draws from, beside the seed and the side.
        """
        configure(self.compute, self.device)
        unet = load_unet(self.model).to(self.device)
        schedule = NoiseSchedule.of(load_scheduler(self.model))
        sets = {part: self.data.select(side, [part]) for part in ("adaptation", "held_out")}

        def loss(part: LatentSet) -> float:
            draws = torch.Generator().manual_seed(seed_of(self.seed, "tune, losses"))
            return fixed_noise_loss(unet, schedule, part, draws)

        before = {name: loss(part) for name, part in sets.items()}
        draws = torch.Generator().manual_seed(seed_of(self.seed, *stream, side))
        label = f"{side} user at {config.lr:g}, {config.steps} steps"
        how = {"frozen": frozen, "generator": draws, "compute": self.compute, "description": label}
        finetune(unet, schedule, sets["adaptation"], config, **how)
        return {name: (before[name], loss(part)) for name, part in sets.items()}

    def run(self, side: str, lr: float, steps: int) -> Run:
        found = self.losses(side, self.config.model_copy(update={"lr": lr, "steps": steps}), ["tune"])
        return Run(side, lr, steps, **{name: round(after / before, 5) for name, (before, after) in found.items()})


def best(runs: Sequence[Run]) -> tuple[float, int]:
    """Rate and steps of the lowest held-out loss, as the mean over both sides; of equals the fewest steps.

    Both sides' users train alike: a rate for each would make the sides' difference one of rates.
    """
    settings = sorted({(run.steps, run.lr) for run in runs})
    of = {place: [run.held_out for run in runs if (run.steps, run.lr) == place] for place in settings}
    steps, lr = min(settings, key=lambda place: sum(of[place]) / len(of[place]))
    return lr, steps


def tune(task: Task, lrs: Sequence[float], steps: Sequence[int], out: Path, workers: int) -> list[Run]:
    """Every rate with every number of steps, for both sides; writes `out`/runs.csv and `out`/curves.png.

    Each is a run of its own: a user who stops at 60 steps is not one who goes on to 90.
    """
    grid = [(side, lr, n) for side in SIDES for lr in sorted(lrs) for n in sorted(steps)]
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
        curves(runs, temporary / "curves.png")
    return runs


def curves(runs: Sequence[Run], path: Path) -> Path:
    """Losses over steps, a colour a rate; drawn through: held-out images, dotted: those trained on."""
    plt = matplotlib_pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, side in zip(axes, SIDES, strict=True):
        for color, lr in enumerate(sorted({run.lr for run in runs})):
            own = sorted((run for run in runs if (run.side, run.lr) == (side, lr)), key=lambda run: run.steps)
            for part, style in (("held_out", "o-"), ("adaptation", "o:")):
                values = [1.0, *(getattr(run, part) for run in own)]
                label = f"{lr:g}" if part == "held_out" else None
                axis.plot([0, *(run.steps for run in own)], values, style, color=f"C{color}", label=label)
        axis.set(title=f"Full fine-tuning, {side} side", xlabel="steps")
    axes[0].set_ylabel("denoising loss over the published model's")
    axes[1].legend(title="learning rate (dotted: images trained on)", fontsize=7)
    figure.tight_layout()
    return save_figure(figure, path)
