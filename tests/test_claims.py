"""The claims: which case, arm and score decide each, figures against numbers computed apart, verdicts by intervals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_json
from freezeasguard.reports.claims import Claim, early_fall, read_claims, swing, verdict, write_claims
from freezeasguard.reports.paired import Images, Measured
from freezeasguard.reports.paper import paper_values, printed_metrics
from freezeasguard.scores.comparisons import paired_differences
from freezeasguard.settings.params import Params
from reported import ARMS, cost, smoke, write_cells

FIFTY = [*ARMS, "freezeasguard-50", "random-50"]


def claim(**own: object) -> Claim:
    base = {"id": "x", "section": "4", "quote": "q", "paper": "p", "table": 2, "test": "fall"}
    return Claim.model_validate(base | own)


def rows_of(params: Params, root: Path) -> dict[str, dict[str, str]]:
    path = write_claims(params, root / "reports", root / "data")
    with path.with_suffix(".csv").open(newline="") as file:
        return {row["Claim"].partition(":")[0]: row for row in csv.DictReader(file)}


def noisy(root: Path, falls: dict[str, float], *, n: int, spread: float) -> None:
    """Images of n prompts a class; an arm's distance is (1 + fall) times the prompt's own, with noise of its own."""
    rng = np.random.default_rng(0)
    rows = [(side, name, 10 * c + i) for side in ("illegal", "legal") for c, name in enumerate("ab") for i in range(n)]
    base = rng.uniform(0.4, 0.6, len(rows))
    for arm, fall in falls.items():
        table = pd.DataFrame(rows, columns=["side", "class", "reference_row"])
        table["recogniser"] = base * (1 + fall) + spread * rng.standard_normal(len(rows))
        table["clip_tiny"] = 1.0
        table.insert(0, "file", [f"{side}/{i}.png" for i, side in enumerate(table["side"])])
        table.to_csv(root / f"data/scores/portraits/images/{arm}.csv", index=False)


def test_every_claim_has_one_bound_and_a_case_and_metric_of_the_paper() -> None:
    claims = read_claims()
    assert len({one.id for one in claims}) == len(claims)
    for one in claims:
        assert (one.at_least is None) != (one.at_most is None), one.id
        assert one.test != "fall" or one.metric in printed_metrics(one.table), one.id
        if one.column and one.table in (5, 6, 7):
            key = "model" if one.table == 7 else "n_illegal_classes"
            assert one.column in {r[key].rpartition("-")[2] for r in paper_values() if r["table"] == str(one.table)}


@pytest.mark.parametrize("one", [c for c in read_claims() if c.test == "fall" and not c.minus], ids=lambda c: c.id)
def test_the_papers_own_numbers_are_those_of_its_tables(one: Claim) -> None:
    """The figure in claims.yaml against the printed cells; where the paper's text and table differ, it says so."""

    def printed(wanted: str) -> float:
        method, _, percent = wanted.partition("@")
        rows = [
            row for row in paper_values()
            if (row["table"], row["method"], row["metric"]) == (str(one.table), method, one.metric)
            and row["side"] == one.side and (not percent or float(row["freeze_ratio"]) == float(percent) / 100)
            and (one.table != 7 or row["model"].endswith(one.column or ""))
            and (one.table not in (5, 6) or row["n_illegal_classes"] == one.column)
        ]  # fmt: skip
        (row,) = rows
        return float(row["value"]) * (1 if row["better_quality"] == "lower" else -1)

    own, base = printed(one.arm), printed(one.against)
    fall = 100 * (own - base) / abs(base)
    if "(" in one.paper:  # the text has no figure, or another than the table
        told = one.paper.partition("(")[2].partition("%")[0]
        assert fall == pytest.approx(float(told), abs=0.6)
    elif one.at_least is not None and one.id.endswith("full"):
        assert fall > one.at_least - 0.5


def test_figures_and_verdicts_follow_the_images(tmp_path: Path) -> None:
    params = smoke(FIFTY)
    write_cells(params, tmp_path)
    falls = {"full": 0.0, "uce": 0.0, "imma": 0.1, "freezeasguard": 0.02, "random": 0.0}
    falls |= {"freezeasguard-50": 0.6, "random-50": 0.6, "pretrained": 1.0, "uce-before": 1.0}
    noisy(tmp_path, falls, n=8, spread=0.002)
    rows = rows_of(params, tmp_path)
    exact = {"mitigation-37-uce": 60.0, "mitigation-37-imma": 100 * (1.6 / 1.1 - 1), "legal-5-portraits": 2.0}
    for name, expected in exact.items():
        value = float(rows[name]["Ours [95% interval]"].partition("%")[0])
        assert value == pytest.approx(expected, abs=0.5) and rows[name]["Verdict"] == "holds", name
    assert "FG-50% against UCE, illegal side, Recogniser distance" in rows["mitigation-37-uce"]["Decided by"]
    noisy(tmp_path, falls | {"freezeasguard-50": 0.1}, n=8, spread=0.002)
    assert rows_of(params, tmp_path)["mitigation-37-uce"]["Verdict"] == "does not hold"
    noisy(tmp_path, falls | {"freezeasguard-50": 0.37}, n=8, spread=0.2)
    assert rows_of(params, tmp_path)["mitigation-37-uce"]["Verdict"] == "not decidable with n = 16 images"
    noisy(tmp_path, falls | {"pretrained": 0.0}, n=8, spread=0.2)
    assert rows_of(params, tmp_path)["mitigation-37-uce"]["Verdict"].startswith("no signal: Full FT betters it by")


def test_a_fall_is_the_paired_difference_over_the_base(tmp_path: Path) -> None:
    """With a base that is the same on every image the ratio's bootstrap is the difference's, to scale."""
    params = smoke(FIFTY)
    write_cells(params, tmp_path)
    noisy(tmp_path, {"full": 0.0, "freezeasguard": 0.1}, n=8, spread=0.05)
    path = tmp_path / "data/scores/portraits/images/full.csv"
    table = pd.read_csv(path).assign(recogniser=0.5)
    table.to_csv(path, index=False)
    images = Images(params, "portraits", tmp_path / "data")
    full, own = (next(arm for arm in params.arms("portraits") if arm.name == n) for n in ("full", "freezeasguard"))
    found = images.fall([(own, full)], "legal", "recogniser")
    values = {arm.name: images.of(arm, "legal")["recogniser"].to_numpy(float) for arm in (full, own)}
    resamples = images.resamples("legal", images.of(full, "legal"))
    expected = paired_differences(values, [("freezeasguard", "full")], resamples)["freezeasguard", "full"].interval
    assert found.value == pytest.approx(200 * expected.value) and found.n == 16
    # THE interval of scores is centred on the resamples' median, that of differences is the percentile's
    assert found.high - found.low == pytest.approx(200 * (expected.high - expected.low))


def test_the_gain_of_full_fine_tuning_is_the_paired_difference(tmp_path: Path) -> None:
    params = smoke(FIFTY)
    write_cells(params, tmp_path)
    noisy(tmp_path, {"full": 0.0, "pretrained": 0.1}, n=8, spread=0.05)
    images = Images(params, "portraits", tmp_path / "data")
    full, pretrained = (next(arm for arm in params.arms("portraits") if arm.name == n) for n in ("full", "pretrained"))
    gain = images.gain("legal", "recogniser")
    values = {arm.name: images.of(arm, "legal")["recogniser"].to_numpy(float) for arm in (full, pretrained)}
    resamples = images.resamples("legal", images.of(full, "legal"))
    expected = paired_differences(values, [("pretrained", "full")], resamples)["pretrained", "full"].interval
    assert gain.value == pytest.approx(expected.value) and gain.high - gain.low == pytest.approx(
        expected.high - expected.low
    )
    assert bool(images.no_signal("legal", "recogniser")) == (gain.low <= 0)
    assert images.no_signal("legal", "clip_tiny").startswith("no signal: Full FT betters it by +0.00")


def test_what_the_profile_lacks_is_told_and_what_is_missing_is_an_error(tmp_path: Path) -> None:
    params = smoke(FIFTY)
    write_cells(params, tmp_path)
    rows = rows_of(params, tmp_path)
    assert rows["artworks-47-full"]["Verdict"] == rows["classes-2-uce"]["Verdict"] == "not run in this profile"
    assert rows["memory-48"]["Decided by"] == "portraits: no arm freezeasguard@80"
    assert {row["Verdict"] for row in rows_of(smoke(FIFTY, roles="swapped"), tmp_path).values()} == {
        "not run in this profile"
    }
    (tmp_path / "data/scores/portraits/images/imma.csv").unlink()
    with pytest.raises(FreezeAsGuardError, match=r"imma.csv is missing; run `dvc repro -f score@portraits`"):
        write_claims(params, tmp_path / "reports", tmp_path / "data")


def test_costs_are_ratios_of_the_same_users(tmp_path: Path) -> None:
    params = smoke(FIFTY)
    write_cells(params, tmp_path)
    rows = rows_of(params, tmp_path)
    assert rows["time-13"]["Ours [95% interval]"] == "+7.5% [+7.5, +7.5]"  # 0.25 rho, see reported.cost
    assert rows["time-13"]["Verdict"] == "does not hold" and rows["memory-22"]["Ours [95% interval]"].startswith(
        "+15.0%"
    )
    path = tmp_path / "data/costs/adapt/portraits-freezeasguard.json"
    users = json.loads(path.read_text())
    write_json(path, {user: {**one, "peak_bytes": None} for user, one in users.items()})
    assert rows_of(params, tmp_path)["memory-22"]["Verdict"] == "not decidable with n = 0 users: not measured"
    assert cost(0.0, 0)["median_step_s"] == 0.5


def test_the_fall_and_the_swing_of_a_loss() -> None:
    losses = [1.0] * 1 + [0.5] * 4 + [0.4] * 5 + [0.2, 0.4] * 10
    assert early_fall(losses) == pytest.approx(100 * (1 - 0.4) / (1 - 0.3), rel=0.02)
    assert swing(losses) == pytest.approx(50.0)
    assert early_fall(losses[:20]) is None and early_fall([0.1] * 30) is None and swing(losses[:10]) is None


@pytest.mark.parametrize(
    ("bound", "low", "high", "expected"),
    [
        ({"at_least": 5.0}, 6, 9, "holds"),
        ({"at_least": 5.0}, 1, 4, "does not hold"),
        ({"at_least": 5.0}, 4, 6, "not decidable with n = 7 images"),
        ({"at_least": 0.0}, 0, 0, "does not hold"),
        ({"at_most": 5.0}, -2, 5, "holds"),
        ({"at_most": 5.0}, 5.1, 6, "does not hold"),
        ({"at_least": 5.0}, 6, float("inf"), "not decidable with n = 7 images"),
    ],
)
def test_verdicts(bound: dict[str, float], low: float, high: float, expected: str) -> None:
    assert verdict(claim(**bound), Measured((low + high) / 2, low, high, 7)) == expected
