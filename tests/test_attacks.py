"""`freezeasguard attack`: other rates, seeds and more steps, on toy users and on numbers whose answer is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from freezeasguard import cli as command
from freezeasguard.cli import cli
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.protected import Protected, write_for
from freezeasguard.settings.profiles import write_profile
from freezeasguard.settings.users import Adapt
from freezeasguard.sides import SIDES
from freezeasguard.users import attacks as module
from freezeasguard.users.attacks import Attack, arm_rows, attacks_of
from freezeasguard.users.tuning import Task
from test_tuning import toy_task, toy_world
from test_users import TENSORS, World, toy_tensors


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    found = toy_world(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "load_unet", module_unet)
    write_for(toy_tensors(), tmp_path / "arms" / "random", Protected("random", frozenset(TENSORS)))
    edit = Protected("uce", edited={"bias": torch.full((4,), 0.25)})
    write_for(toy_tensors(), tmp_path / "arms" / "uce", edit)
    return found


def module_unet(_: Path) -> Any:
    from conftest import ToyDenoiser

    return ToyDenoiser(1)


def task_of(steps: int = 2, lr: float = 0.1) -> Task:
    return dataclasses.replace(toy_task(), config=Adapt(steps=steps, batch_size=2, lr=lr))


def run(arms: list[str], out: Path, task: Task, n_seeds: int = 2) -> pd.DataFrame:
    attacks = attacks_of(task, [0.01], longer=2)
    module.attack(task, "toy", arms, attacks, n_seeds, Path("arms"), out, 1, rho=0.3, where="A toy.")
    return pd.read_csv(out / "users.csv")


def test_no_step_rates_at_the_usual_steps_and_more_steps_at_the_usual_rate() -> None:
    expected = [Attack(0, 0.1), Attack(2, 0.01), Attack(2, 0.1), Attack(8, 0.1)]
    assert attacks_of(task_of(), [0.01, 0.1], 4) == expected
    assert attacks_of(task_of(), [0.01], 1) == expected[:3]


def test_every_arm_meets_every_attack_under_its_own_protection(world: World, tmp_path: Path) -> None:
    found = run(["random", "uce"], tmp_path / "out", task_of())
    assert len(found) == 3 * 4 * 2 * 2
    assert world.steps == 2 * 2 * 2 * (2 + 2 + 4)  # who may train nothing takes no step
    frozen = found[found.arm == "random"]
    assert (frozen.kept_adaptation == 0).all() and (frozen.kept_held_out == 0).all()  # all of its tensors are frozen
    full, edited = (found[found.arm == arm].reset_index(drop=True) for arm in ("full", "uce"))
    assert (full.kept_adaptation != edited.kept_adaptation).all()  # they start from other weights
    untrained, edit = (frame[frame.steps == 0].kept_adaptation for frame in (full, edited))
    assert (untrained == 0).all() and edit.nunique() == 2  # each seed's alike, on either side
    for side in SIDES:
        # 1 is the mean of full fine-tuning's users at the better of the rates
        means = full[(full.side == side) & (full.steps == 2)].groupby("lr").kept_adaptation.mean()
        assert means.max() == pytest.approx(1, abs=1e-4)
    text = (tmp_path / "out" / "attacks.md").read_text()
    assert "R-30%" in text and "the best rate" in text and "A toy." in text
    assert not list((tmp_path / "data" / "checkpoints").glob("attack*"))


def test_the_same_user_whatever_else_is_asked_for_and_another_by_seed(world: World, tmp_path: Path) -> None:
    one, both = (run(arms, tmp_path / str(len(arms)), task_of()) for arms in (["uce"], ["random", "uce"]))
    mine = [frame[frame.arm == "uce"].reset_index(drop=True) for frame in (one, both)]
    pd.testing.assert_frame_equal(*mine)
    moved = mine[0][mine[0].steps > 0]
    seeds = [moved[moved.seed == seed].kept_adaptation.to_numpy() for seed in (0, 1)]
    assert (seeds[0] != seeds[1]).all()


def test_a_killed_run_goes_on_and_another_edit_is_another_user(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "arm_rows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(["uce"], tmp_path / "out", task_of())
    trained = world.steps
    assert not (tmp_path / "out").exists() and trained == 2 * 2 * 2 * (2 + 2 + 4)
    write_for(toy_tensors(), tmp_path / "arms" / "uce", Protected("uce", edited={"bias": torch.full((4,), 0.75)}))
    run(["uce"], tmp_path / "out", task_of())
    assert world.steps == trained + 2 * 2 * (2 + 2 + 4)  # full fine-tuning's users were there


def test_the_best_rate_is_each_sides_own() -> None:
    none, slow, fast, long = Attack(0, 0.1), Attack(2, 0.01), Attack(2, 0.1), Attack(8, 0.1)
    means = {(none, side): 3.0 for side in SIDES}
    means |= {(slow, "illegal"): 0.4, (fast, "illegal"): 0.2, (slow, "legal"): 0.7, (fast, "legal"): 0.9}
    means |= {(long, side): 2.0 for side in SIDES}
    kept = {("a", one, side, part): [x - 0.1, x + 0.1] for (one, side), x in means.items() for part in module.MEASURED}
    rows = arm_rows("A", "a", [none, slow, fast, long], [slow, fast], kept)
    assert [row[1] for row in rows] == [
        "as published",
        "0.01, 2 steps",
        "0.1, 2 steps",
        "0.1, 8 steps",
        "the best rate",
    ]
    assert rows[-1][2:5] == ["0.40 (0.30 to 0.50)", "0.90 (0.80 to 1.00)", "+0.50"]
    assert all(len(row) == len(module.HEADER) for row in rows)
    assert module.spread_text([0.5]) == "0.50" and module.spread_text([float("nan")]) == "-"


def test_an_arm_without_a_protected_model_is_named(world: World, tmp_path: Path) -> None:
    with pytest.raises(FreezeAsGuardError, match="has no protected model 'imma'; run `dvc repro protect@arms-imma`"):
        run(["imma"], tmp_path / "out", task_of())
    assert world.steps == 0


def test_a_case_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    done = CliRunner().invoke(cli, ["attack", "nosuch"])
    assert "params.yaml has no case 'nosuch'; it has portraits" in str(done.exception)


def test_bystanders_share_the_model_of_the_case_that_is_protected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_profile("tiny-full")
    said = CliRunner().invoke(cli, ["attack", "artworks", "--users-of", "portraits"])
    assert "--users-of portraits: its model is not that of artworks" in str(said.exception)
    asked: list[Any] = []
    monkeypatch.setattr(command, "_task", lambda params, case: asked.append(case) or task_of())
    monkeypatch.setattr(module, "attack", lambda task, *rest, **how: asked.append(rest) or tmp_path / "params.yaml")
    assert CliRunner().invoke(cli, ["attack", "portraits", "anchored", "--users-of", "costs"]).exit_code == 0
    of, (name, arms, _, _, protected, out, _) = asked
    assert (of, name, arms) == ("costs", "portraits-users-of-costs", ["anchored"])
    assert (protected, out) == (Path("data/protected/portraits"), Path("reports/attacks/portraits-users-of-costs"))
