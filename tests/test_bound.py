"""`freezeasguard bound`: masks by regression, on data whose answer is known and on toy users."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from freezeasguard.cli import cli
from freezeasguard.models.diffusion import stored_tensors
from freezeasguard.settings.users import Adapt
from freezeasguard.users import bound as module
from freezeasguard.users import trials
from freezeasguard.users.bound import (
    Explained,
    explained,
    free_shares,
    group_of,
    regressions,
    residual,
    table,
    tilted_mask,
)
from freezeasguard.users.trials import kept_of
from test_tuning import toy_task, toy_world

MODEL = Path(__file__).parent.parent / "data" / "models" / "tiny-1.5"


@pytest.fixture(scope="module")
def sizes() -> dict[str, int]:
    return {name: tensor.numel() for name, tensor in stored_tensors(MODEL).items()}


def test_every_tensor_of_stable_diffusion_has_a_group(sizes: dict[str, int]) -> None:
    groups = Counter(map(group_of, sizes))
    assert sum(groups.values()) == 686 and 40 <= len(groups) <= 70
    assert not [group for group in groups if group.endswith("other")]
    assert group_of("up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight") == "up_blocks.1, cross attention"
    assert group_of("mid_block.resnets.0.norm1.bias") == "mid, norm"
    assert group_of("time_embedding.linear_1.weight") == "ends, time"
    assert group_of("conv_in.weight") == "ends, convolution"


def test_a_tilted_mask_has_its_size_and_varies_by_group(sizes: dict[str, int]) -> None:
    names, rng = sorted(sizes), np.random.default_rng(0)
    tilted, even = ([tilted_mask(names, 0.9, rng, tilt) for _ in range(40)] for tilt in (1.0, 0.0))
    assert {len(mask) for mask in (*tilted, *even)} == {round(0.9 * 686)}

    def spread(masks: list[frozenset[str]]) -> float:
        of = [Counter(group_of(name) for name in names if name not in mask) for mask in masks]
        return float(np.mean([np.std([counts[group] for counts in of]) for group in set(map(group_of, names))]))

    assert spread(tilted) > 1.2 * spread(even)
    # At no tilt every tensor is as likely as any other: a free one has 69 of 686 chances.
    free = Counter(
        name for mask in (tilted_mask(names, 0.9, rng, 0.0) for _ in range(400)) for name in set(names) - mask
    )
    assert max(abs(free[name] / 400 - 69 / 686) for name in names) < 5 * (0.1 * 0.9 / 400) ** 0.5


def test_shares_are_of_weights_and_by_group() -> None:
    sizes = {"conv_in.weight": 30, "conv_in.bias": 10, "mid_block.attentions.0.norm.weight": 7}
    found = free_shares([frozenset(["conv_in.bias"]), frozenset(sizes)], sizes)
    np.testing.assert_allclose(found, [[0.75, 1.0], [0.0, 0.0]])


def world(n: int, effect: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of 12 groups; the level follows two of them, and the gap the level, noise, and `effect` of a third."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 12))
    level = x[:, 0] - x[:, 1] + 0.3 * rng.normal(size=n)
    return x, 0.8 * level + effect * x[:, 2] + 0.5 * rng.normal(size=n), level


def test_what_the_groups_explain_is_found_out_of_sample() -> None:
    found = explained(regressions()["linear"], *world(120, effect=0.5))
    assert 0.3 < found.r2 < 0.6 and found.p < 0.02  # half of the variance is noise


@pytest.mark.parametrize("seed", [1, 2])
def test_the_level_alone_explains_nothing_of_the_difference(seed: int) -> None:
    """The gap follows the level, and the level the groups: without regressing it out, R^2 would be near 1."""
    x, gap, level = world(120, effect=0.0, seed=seed)
    assert explained(regressions()["linear"], x, gap, np.random.default_rng(9).normal(size=120)).r2 > 0.5
    found = explained(regressions()["linear"], x, gap, level)
    assert found.r2 < 0.05 and found.p > 0.05


def test_the_level_is_fitted_on_the_training_masks_alone() -> None:
    level = np.array([0.0, 1.0, 2.0, 3.0])
    gap = np.array([1.0, 3.0, 5.0, 100.0])
    np.testing.assert_allclose(residual(gap, level, np.array([0, 1, 2])), [0, 0, 0, 93], atol=1e-9)


def test_kept_is_measured_by_the_mean_of_full_fine_tunings() -> None:
    full: list[dict[str, Any]] = [{"adaptation": [1.0, 0.5]}, {"adaptation": [1.0, 0.7]}]
    assert kept_of([{"adaptation": [1.0, 0.8]}], full) == pytest.approx(0.5)
    assert np.isnan(kept_of([{"adaptation": [1.0, 0.8]}], [{"adaptation": [1.0, 1.0]}]))


def test_the_table_says_what_was_tried() -> None:
    kept = {f"best-{i}": {"illegal": 0.5 - 0.01 * i, "legal": 0.8} for i in range(5)}
    kept |= {f"blind-{i}": {"illegal": 0.7, "legal": 0.7 + 0.01 * i} for i in range(5)}
    gap = np.array([0.1, -0.1, 0.0])
    header, rows, notes = table(gap, {"linear": Explained(0.2, 0.01)}, kept, "linear", 0.9)
    assert all(len(row) == len(header) for row in rows)
    assert rows[0][4] == "+0.000, SD 0.100" and rows[1][4:] == ["+0.20", "0.010"]
    assert rows[2][2:5] == ["0.48", "0.80", "+0.320 [+0.300, +0.340]"]
    assert rows[4][4].startswith("+0.300 [") and "90% of the tensors" in notes[0]
    assert "No regression explains" not in notes[2]
    assert "No regression explains" in table(gap, {"linear": Explained(-0.1, 0.6)}, kept, "linear", 0.9)[2][2]


def test_the_whole_on_toy_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mask is trained under on both sides once, a killed run goes on, and the tables hold what was trained."""
    toy = toy_world(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "stored_tensors", trials.stored_tensors)
    monkeypatch.setattr(module, "CANDIDATES", 4)
    monkeypatch.setattr(module, "N_BEST", 2)
    monkeypatch.setattr(module, "PERMUTATIONS", 2)
    task = dataclasses.replace(toy_task(), config=Adapt(steps=2, batch_size=2, lr=0.1))
    out = tmp_path / "reports" / "toy"
    kill = monkeypatch.context()
    with kill as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "explained", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        module.bound(task, "toy", 0.5, 20, out, 1)
    before = toy.steps
    assert not out.exists() and before > 0
    written = module.bound(task, "toy", 0.5, 20, out, 1)
    again = toy.steps - before
    assert 0 < again <= 2 * 2 * 2 * 2 * 3  # fresh users alone: sides, steps, best and blind, masks, streams
    found = pd.read_csv(out / "masks.csv")
    assert len(found) == 20 + 2 * 2 and found["kept_legal"].notna().all()
    assert "Best over blind" in written.read_text()
    assert not list((tmp_path / "data" / "checkpoints").glob("bound*"))


def test_a_case_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    done = CliRunner().invoke(cli, ["bound", "nosuch"])
    assert "params.yaml has no case 'nosuch'; it has portraits" in str(done.exception)
