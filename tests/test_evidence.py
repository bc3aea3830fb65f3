"""What stands beside a study's findings: pooled, against rivals, by chance, and with more seeds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from freezeasguard.reports.evidence import (
    NULL_HEADER,
    POOLED_HEADER,
    POWER_HEADER,
    RIVALS_HEADER,
    null_rows,
    pooled_rows,
    power_rows,
    repetitions_for,
    rival_rows,
    write_evidence,
)
from freezeasguard.reports.findings import findings_of
from freezeasguard.reports.summary import write_rows
from test_collect import Row
from test_findings import BLIND, LEARNED, seeds


def gaps(kept: list[tuple[float, float]]) -> np.ndarray:
    return np.array([legal - illegal for illegal, legal in kept])


def learned_and_blind(**more: str) -> list[Row]:
    return [*seeds("freezeasguard", LEARNED, **more), *seeds("random", BLIND, **more)]


@pytest.mark.parametrize(("effect", "n"), [(0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5)])
def test_seeds_for_a_power_of_80_percent(effect: float, n: int) -> None:
    """The published figures of G*Power 3 for a two-sided one-sample t test at .05."""
    assert repetitions_for(effect) == n


def test_power_is_what_simulated_studies_show() -> None:
    """At the n that is named, 80% of simulated studies find the gap; at one seed less, fewer."""
    n = repetitions_for(0.8)
    drawn = np.random.default_rng(0).normal(0.8, 1, (20_000, n))
    found = np.mean(ttest_1samp(drawn, 0, axis=1).pvalue < 0.05)
    fewer = np.mean(ttest_1samp(drawn[:, :-1], 0, axis=1).pvalue < 0.05)
    assert fewer < 0.8 <= found + 0.01 and found < 0.84


def test_power_rows_take_the_spread_of_the_gap_over_random() -> None:
    by_score, by_loss = power_rows(findings_of(learned_and_blind()))
    spread = np.std(gaps(LEARNED) - gaps(BLIND), ddof=1)
    assert by_score == ["portraits", "FG-30%", "score", f"{spread:.3f}", "0.1", str(repetitions_for(0.1 / spread))]
    assert by_loss[2] == "loss" and int(by_loss[5]) > int(by_score[5]) and len(by_score) == len(POWER_HEADER)
    assert power_rows(findings_of(seeds("anchored", LEARNED))) == []


def test_a_small_gap_of_a_wide_spread_asks_for_more_than_is_counted() -> None:
    wild = [(0.1, 0.1 + 9 * (-1) ** i) for i in range(5)]
    (by_score, _) = power_rows(findings_of([*seeds("freezeasguard", wild), *seeds("random", BLIND)]))
    assert by_score[5] == "over 1000"


def test_pooled_takes_a_value_a_case_and_seed() -> None:
    cells = [*learned_and_blind(), *learned_and_blind(case="artworks")]
    (line,) = pooled_rows(findings_of(cells))
    over = gaps(LEARNED) - gaps(BLIND)
    assert line[:3] == ["FG-30%", "2", "10"] and line[3].startswith(f"{over.mean():+.3f} [")
    assert line[4] == f"{ttest_1samp([*over, *over], 0).pvalue:.3f}" and len(line) == len(POOLED_HEADER)


def test_a_case_without_a_signal_is_not_pooled() -> None:
    silent = [*LEARNED[:2], (0.2, None), (None, 0.9), (None, None)]
    cells = [*learned_and_blind(), *seeds("freezeasguard", silent, case="artworks")]
    assert pooled_rows(findings_of(cells))[0][2] == "5"


def test_ours_is_set_beside_each_rival_seed_by_seed() -> None:
    cells = [*seeds("anchored", LEARNED), *seeds("imma", BLIND), *seeds("imma_frozen", BLIND)]
    (line,) = rival_rows(findings_of(cells))
    assert line[:4] == ["portraits", "Anchored", "IMMA", "5"] and len(line) == len(RIVALS_HEADER)
    illegal, legal = np.transpose(np.array(BLIND) - np.array(LEARNED))
    assert line[4].startswith(f"{illegal.mean():+.2f} [") and line[5].startswith(f"{-legal.mean():+.2f} [")
    assert line[7] == f"{ttest_rel(gaps(LEARNED), gaps(BLIND)).pvalue:.3f}"


def test_rivals_are_compared_within_a_case_alone() -> None:
    assert rival_rows(findings_of([*seeds("anchored", LEARNED), *seeds("uce", BLIND, case="artworks")])) == []


def test_chance_is_half_the_difference_of_two_draws() -> None:
    other = [(a - 0.1, b + 0.02 * i) for i, (a, b) in enumerate(BLIND)]
    cells = [*seeds("random", BLIND), *seeds("random-draw2", other, draw=2), *seeds("random-element", BLIND)]
    (line,) = null_rows(cells)
    halves = (gaps(BLIND) - gaps(other)) / 2
    assert line[:3] == ["portraits", "R-30%", "10"] and len(line) == len(NULL_HEADER)
    assert float(line[3]) == pytest.approx(math.sqrt(np.mean(halves**2)), abs=6e-4)


def test_tables_without_a_line_are_not_written(tmp_path: Path) -> None:
    cells = tmp_path / "cells.csv"
    (tmp_path / "tables").mkdir()
    write_rows(cells, learned_and_blind())
    assert [path.stem for path in write_evidence(cells)] == ["pooled", "power"]
