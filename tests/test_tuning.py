"""`freezeasguard tune`: an attacker's rate and steps, by full fine-tuning on images held out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from conftest import CHANNELS, SIZE, TEXT, TOKENS
from freezeasguard.cli import cli
from freezeasguard.models.latents import CaseData
from freezeasguard.settings.users import Adapt
from freezeasguard.sides import SIDES
from freezeasguard.users import adapt, trials, tuning
from freezeasguard.users.tuning import Run, Task, best, best_by_score, tune
from test_users import World


def test_the_best_serves_both_sides_on_images_held_out() -> None:
    def run(side: str, lr: float, steps: int, held_out: float) -> Run:
        return Run(side, lr, steps, adaptation=0.0 if lr == 0.5 else 1.0, held_out=held_out)

    runs = [run("illegal", 0.1, 30, 0.8), run("legal", 0.1, 30, 0.9), run("illegal", 0.2, 30, 0.6)]
    runs += [run("legal", 0.2, 30, 1.2), run("illegal", 0.5, 60, 0.9), run("legal", 0.5, 60, 0.9)]
    assert best(runs) == (0.1, 30)
    assert best([*runs, run("illegal", 0.2, 60, 0.5), run("legal", 0.2, 60, 0.9)]) == (0.2, 60)
    assert best([run("legal", 0.2, 60, 0.5), run("legal", 0.2, 30, 0.5)]) == (0.2, 30)


def toy_task() -> Task:
    draws = torch.Generator().manual_seed(0)
    rows = [{"side": side, "part": part, "class": side} for side in SIDES for part in ("adaptation", "held_out") * 3]
    latents = torch.randn(len(rows), 2, CHANNELS, SIZE, SIZE, generator=draws)
    text = torch.randn(len(rows), TOKENS, TEXT, generator=draws)
    return Task(Path(), CaseData(pd.DataFrame(rows), latents, text, text[0]), Adapt(steps=1, batch_size=2, lr=1.0), 0)


def toy_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """What commands that train outside the pipeline read is the toy model."""
    world = World(tmp_path, monkeypatch)
    for name in ("load_unet", "load_scheduler"):
        monkeypatch.setattr(tuning, name, getattr(adapt, name))
    monkeypatch.setattr(trials, "stored_tensors", adapt.stored_tensors)
    return world


def test_every_run_of_the_grid_is_one_of_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = toy_world(tmp_path, monkeypatch)
    task = toy_task()
    runs = tune(task, [1e-2, 1e-3], [2, 5], tmp_path / "out", workers=1)
    assert [(r.side, r.lr, r.steps) for r in runs] == [(s, lr, n) for s in SIDES for lr in (1e-3, 1e-2) for n in (2, 5)]
    assert world.steps == 2 * 2 * (2 + 5)
    assert all(run.adaptation != 1 and run.held_out not in (1, run.adaptation) for run in runs)
    assert task.run("legal", 1e-2, 5) == runs[-1]  # the same seed, the same run
    assert all(run.score is None for run in runs)
    written = pd.read_csv(tmp_path / "out/runs.csv").drop(columns="score").to_dict("records")
    assert written == [{key: value for key, value in vars(run).items() if key != "score"} for run in runs]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"runs.csv", "curves.png"}


def test_the_published_models_loss_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_world(tmp_path, monkeypatch)
    taken: list[float] = []
    loss = tuning.fixed_noise_loss
    monkeypatch.setattr(tuning, "fixed_noise_loss", lambda *args: taken.append(loss(*args)) or taken[-1])
    task = toy_task()
    runs = tune(task, [1e-2, 1e-3], [2, 5], tmp_path / "out", workers=1)
    assert len(taken) == 2 * 2 + 2 * len(runs)  # sides and parts; each user's parts
    before, after = task.train("legal", task.config, ["tune"])[1]["held_out"]
    assert before == task.published_losses["legal"]["held_out"] == taken[3] and after != before


def test_the_score_alone_may_choose_otherwise_and_knows_its_direction() -> None:
    def run(lr: float, steps: int, score: float) -> list[Run]:
        return [Run(side, lr, steps, 1.0, 1.0, score + shift) for side, shift in zip(SIDES, (-0.1, 0.1), strict=True)]

    runs = [*run(0.0, 0, 0.1), *run(0.1, 30, 0.8), *run(0.2, 30, 0.6), *run(0.2, 60, 0.9)]
    assert best_by_score(runs, lower_is_better=True) == (0.2, 30)  # and never the published model
    assert best_by_score(runs, lower_is_better=False) == (0.2, 60)
    assert best(runs) == (0.1, 30)


def test_a_judge_scores_every_user_and_the_published_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        names = dict(zip(SIDES, ("nudenet_faces", "kd_efficientnet_lite0"), strict=True))

        def score(self, unet: torch.nn.Module, task: Task, side: str) -> float:
            return sum(float(p.detach().abs().sum()) for p in unet.parameters())

    world = toy_world(tmp_path, monkeypatch)
    judge: Any = Fake()
    task = dataclasses.replace(toy_task(), judge=judge)
    runs = tune(task, [1e-2], [2, 5], tmp_path / "out", workers=1)
    assert [(run.side, run.steps) for run in runs] == [(side, n) for side in SIDES for n in (0, 2, 5)]
    assert world.steps == 2 * (2 + 5)
    published, *trained = [run.score for run in runs if run.side == "illegal"]
    assert runs[0].adaptation == runs[0].held_out == 1 and published not in trained and len(set(trained)) == 2


def test_a_case_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    done = CliRunner().invoke(cli, ["tune", "nosuch"])
    assert "params.yaml has no case 'nosuch'; it has portraits" in str(done.exception)
