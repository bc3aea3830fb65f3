"""FID and KID as means over classes (the authors' FID), against scipy's matrix root and sums over all pairs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import sqrtm

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.scores.base import Real, SideFeatures
from freezeasguard.scores.inception import FID, KID
from freezeasguard.scores.scoring import ScoredImages, summarise
from freezeasguard.scores.statistics import resample_within
from freezeasguard.settings.params import Score as ScoreSettings
from freezeasguard.settings.params import parse_params
from freezeasguard.settings.profiles import profile_text
from freezeasguard.settings.reading import parse_yaml
from freezeasguard.settings.resolve import resolved

D = 6
CLASSES = np.repeat(["ann", "bob", "cy"], [12, 20, 8])
OF_REAL = np.repeat(["cy", "ann", "bob"], [9, 15, 11])


def features(labels: np.ndarray, seed: int) -> np.ndarray:
    """Classes far apart: a distance of pooled sets has little to do with the mean of the classes' own."""
    centre = {"ann": 0.0, "bob": 5.0, "cy": -7.0}
    rng = np.random.default_rng(seed)
    return np.stack([rng.normal(centre[str(label)] + seed, 1 + seed / 4, D) for label in labels])


@pytest.fixture
def scored() -> ScoredImages:
    table = pd.DataFrame({"class": CLASSES, "reference_row": np.arange(len(CLASSES)) // 4})
    return ScoredImages(table, {"inception": {"features": torch.tensor(features(CLASSES, 1))}})


@pytest.fixture
def real() -> SideFeatures:
    return SideFeatures({"inception": {"features": torch.tensor(features(OF_REAL, 0))}}, OF_REAL)


def by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    s_a, s_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s_a + s_b - 2 * sqrtm(s_a @ s_b).real))


def test_fid_is_the_mean_over_classes_with_its_interval(scored: ScoredImages, real: SideFeatures) -> None:
    settings = ScoreSettings(bootstrap_resamples=60, per_class=True)
    own, target = features(CLASSES, 1), features(OF_REAL, 0)
    expected = np.mean([by_scipy(own[name == CLASSES], target[name == OF_REAL]) for name in ("ann", "bob", "cy")])
    found = summarise(scored, real, ["fid"], settings, seed=0)["fid"]
    assert found["value"] == pytest.approx(expected, rel=1e-6)
    assert found["low"] < found["value"] < found["high"]
    pooled = summarise(scored, real, ["fid"], settings.model_copy(update={"per_class": False}), seed=0)["fid"]
    assert pooled["value"] == pytest.approx(by_scipy(own, target), rel=1e-6)
    assert abs(pooled["value"] - found["value"]) > 1
    # The interval is that of the distances computed anew on every resample.
    draws = list(resample_within(CLASSES, [scored.table["reference_row"]], 60, np.random.default_rng(0)))
    values = [
        np.mean([by_scipy(own[rows[CLASSES[rows] == name]], target[name == OF_REAL]) for name in np.unique(CLASSES)])
        for rows in draws
    ]
    low, middle, high = np.quantile(values, [0.025, 0.5, 0.975])
    assert (found["low"], found["high"]) == pytest.approx((expected + low - middle, expected + high - middle), rel=1e-5)


def test_every_resample_has_every_class_whole() -> None:
    prompts = np.arange(len(CLASSES)) // 4
    for rows in resample_within(CLASSES, [prompts], 20, np.random.default_rng(0)):
        assert (CLASSES[rows] == np.sort(CLASSES)).all()
        counts = np.unique(prompts[rows], return_counts=True)[1]
        assert (counts % 4 == 0).all()


def test_kid_is_the_mean_over_classes(scored: ScoredImages, real: SideFeatures) -> None:
    settings = ScoreSettings(bootstrap_resamples=2, per_class=True, kid_subset_size=4, kid_subsets=3000)
    found = summarise(scored, real, ["kid"], settings, seed=0)["kid"]
    own, target = features(CLASSES, 1), features(OF_REAL, 0)

    def squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
        def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return (x @ y.T / D + 1) ** 3

        within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernel(a, a), kernel(b, b))]
        return float(sum(within) - 2 * kernel(a, b).mean())

    expected = np.mean([squared_mmd(own[name == CLASSES], target[name == OF_REAL]) for name in np.unique(CLASSES)])
    assert found["value"] == pytest.approx(1000 * expected, rel=0.05)
    assert found["low"] < found["value"] < found["high"]


def test_a_class_with_too_few_images_is_named(scored: ScoredImages, real: SideFeatures) -> None:
    settings = ScoreSettings(bootstrap_resamples=5, per_class=True)
    one = scored.take(np.arange(len(CLASSES)) >= 39)
    with pytest.raises(FreezeAsGuardError, match=r"fid of the class cy needs 2 images, and has 1 generated and 9 real"):
        FID().interval(one, real, [], settings, 0)
    with pytest.raises(FreezeAsGuardError, match="kid of the class cy needs 4 images.*score.per_class: false"):
        KID().interval(one, real, [], settings, 0)


def test_what_it_reads_on_real_images_is_per_class_too() -> None:
    rows = pd.DataFrame({"class": OF_REAL})
    everyone = pd.DataFrame({"class": [*OF_REAL, *["dee"] * 7]})
    own = features(OF_REAL, 0)
    others = np.random.default_rng(5).normal(size=(7, D))
    both = {"features": torch.tensor(np.concatenate([own, others]))}
    real = Real(rows, {"features": torch.tensor(own)}, everyone, both, None, 0, per_class=True)
    lines = FID().on_real(real)
    expected = np.mean([by_scipy(own[name == OF_REAL], others) for name in np.unique(OF_REAL)])
    assert lines["real_vs_other"] == pytest.approx(expected, rel=1e-4)
    pooled = FID().on_real(Real(rows, real.own, everyone, both, None, 0))
    assert lines["real_vs_real"] != pooled["real_vs_real"] and pooled["real_vs_other"] != lines["real_vs_other"]


@pytest.mark.parametrize(("users", "own", "expected"), [(True, None, True), (True, False, False), (False, None, False)])
def test_it_follows_the_users_unless_it_is_set(users: bool, own: bool | None, expected: bool) -> None:
    from pathlib import Path

    values = parse_yaml(profile_text("smoke"), Path("smoke"))
    values["adapt"]["per_class"] = users
    values["score"]["per_class"] = own
    blocks = {name: block for name, block, _ in resolved(parse_params(values, Path("smoke")))}
    assert blocks["score/portraits"].score.per_class is expected
    assert blocks["reference/portraits"].score.per_class is expected
