"""`freezeasguard attack`: does a protection hold against users who train otherwise than the one it was tried on?

Each arm's users train at other rates, longer, and from several seeds; of its rates every arm, full fine-tuning too,
takes the one that serves its user best. So what an arm keeps is no matter of a rate that happens to suit the mask.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from freezeasguard.arms import Arm
from freezeasguard.checkpoints import CHECKPOINTS, Pieces
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import fingerprint, folder_atomically
from freezeasguard.models.diffusion import load_unet, model_hash
from freezeasguard.models.granularity import mask_digest
from freezeasguard.models.protected import Protected, read_protected
from freezeasguard.reports.beside import BEST_RATE, PUBLISHED
from freezeasguard.reports.rendering import write_table
from freezeasguard.reports.study import share_text
from freezeasguard.sides import SIDES
from freezeasguard.users.trials import Trial, Trials, identity, kept_of
from freezeasguard.users.tuning import MEASURED, Task

FULL = "full"
HEADER = ["Protection", "Attack", "Kept, illegal", "Kept, legal", "Gap", "Held out, illegal", "Held out, legal"]


@dataclass(frozen=True, order=True)
class Attack:
    """How a user trains: of what the case's own user does not do alike."""

    steps: int
    lr: float

    @property
    def label(self) -> str:
        return f"{self.lr:g}, {self.steps} steps" if self.steps else PUBLISHED


Kept = Mapping[tuple[str, Attack, str, str], Sequence[float]]
"""(arm, attack, side, part of the images) -> what each seed's user keeps."""


def attacks_of(task: Task, lrs: Sequence[float], longer: int) -> list[Attack]:
    """No step; every rate for the case's own steps; and the case's own rate for `longer` times as many."""
    usual, lr = task.config.steps, task.config.lr
    found = {Attack(usual, rate) for rate in (*lrs, lr)} | ({Attack(longer * usual, lr)} if longer > 1 else set())
    return [Attack(0, lr), *sorted(found)]


def attack(
    task: Task,
    name: str,
    arms: Sequence[str],
    attacks: Sequence[Attack],
    n_seeds: int,
    protected: Path,
    out: Path,
    workers: int,
    *,
    rho: float,
    where: str,
) -> Path:
    """Train all; writes `out`/users.csv, a row a user, and `out`/attacks.md (.csv, .tex); returns the latter.

    Args:
        task: on whose images users train: the case's own, or another's, who are bystanders of the case.
        name: of the whole, for its title and while it runs.
        protected: the folder of the case's protected models, one an arm.
        rho: of the headline arms, for their labels.
        where: which experiment, for the notes.
    """
    unet, usual = load_unet(task.model), [one for one in attacks if one.steps == task.config.steps]
    starts = {FULL: Protected(FULL)}
    for arm in arms:
        if not (protected / arm).is_dir():
            raise FreezeAsGuardError(
                f"{protected} has no protected model {arm!r}; run `dvc repro protect@{protected.name}-{arm}`, or "
                "choose another"
            )
        starts[arm] = read_protected(protected / arm, unet)
    pieces = Pieces(CHECKPOINTS / f"attack-{name}", identity(task, __name__))
    places = [(arm, one, seed) for arm in starts for one in attacks for seed in range(n_seeds)]

    def trial(arm: str, one: Attack, seed: int) -> Trial:
        config = task.config.model_copy(update={"lr": one.lr, "steps": one.steps})
        return Trial(starts[arm], config, ("attack", seed))  # the same draws for every arm and rate

    digests = {arm: start_digest(start) for arm, start in starts.items()}
    names = {  # where nobody trains, all seeds share a run
        (arm, one, seed): f"{arm}-{digests[arm]}-{one.lr:g}-{one.steps}-{seed if one.steps else 0}"
        for arm, one, seed in places
    }
    runs = Trials(task, pieces.path, workers).run({names[place]: trial(*place) for place in places})
    kept: dict[tuple[str, Attack, str, str], list[float]] = {}
    for side in SIDES:
        for part in MEASURED:
            full = [[runs[names[FULL, one, seed]][side] for seed in range(n_seeds)] for one in usual]
            best = min(full, key=lambda ones: np.mean([run[part][1] for run in ones]))
            for arm, one, seed in places:
                own = [runs[names[arm, one, seed]][side]]
                kept.setdefault((arm, one, side, part), []).append(kept_of(own, best, part))
    with folder_atomically(out) as temporary:
        with (temporary / "users.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["arm", "lr", "steps", "seed", "side", *(f"kept_{part}" for part in MEASURED)])
            for arm, one, seed in places:
                for side in SIDES:
                    values = [f"{kept[arm, one, side, part][seed]:.5f}" for part in MEASURED]
                    writer.writerow([arm, f"{one.lr:g}", one.steps, seed, side, *values])
        title = f"Other rates, seeds and more steps: {name}"
        rows = [row for arm in starts for row in arm_rows(Arm.parse(arm).label(rho), arm, attacks, usual, kept)]
        write_table(temporary / "attacks", title, HEADER, rows, [*notes(n_seeds), where])
    pieces.clear()
    return out / "attacks.md"


def start_digest(start: Protected) -> str:
    """Short; of what is frozen and of what is edited."""
    mask = mask_digest(start.frozen, start.frozen_units, start.granularity)
    return fingerprint(mask, model_hash(start.edited))[:12]


def arm_rows(label: str, arm: str, attacks: Sequence[Attack], usual: Sequence[Attack], kept: Kept) -> list[list[str]]:
    """A row an attack, and one of each side's best rate at the usual steps."""
    places = [(side, part) for part in MEASURED for side in SIDES]

    def row(name: str, of: Mapping[tuple[str, str], Attack]) -> list[str]:
        cells = [kept[arm, of[place], *place] for place in places]
        illegal, legal = (float(np.mean(values)) for values in cells[:2])
        shown = [spread_text(values) for values in cells]
        return [label, name, *shown[:2], share_text(legal - illegal, "+.2f"), *shown[2:]]

    best = {(side, part): max(usual, key=lambda one: np.mean(kept[arm, one, side, part])) for side, part in places}
    return [*(row(one.label, dict.fromkeys(places, one)) for one in attacks), row(BEST_RATE, best)]


def spread_text(values: Sequence[float]) -> str:
    """Mean, and the range where there are several."""
    mean = share_text(float(np.mean(values)))
    return mean if len(values) < 2 else f"{mean} ({share_text(min(values))} to {share_text(max(values))})"


def notes(n_seeds: int) -> list[str]:
    return [
        f"Kept: of the fall of the denoising loss; 1 is full fine-tuning at its best rate, the mean of its {n_seeds} "
        "users; 0 the pretrained model. On the images trained on, and on images held out.",
        f"Mean of {n_seeds} users, who draw other batches, timesteps and noise, and their range; one protected model, "
        "one pair of classes. The best rate: each side takes the one that keeps the most at the usual steps.",
    ]
