"""From features to scores, comparisons and calibration lines, on features that are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from freezeasguard.commands import SCORERS
from freezeasguard.data.sources.registry import SOURCES
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.images import read_images
from freezeasguard.models.latents import CaseData
from freezeasguard.scores.base import Features
from freezeasguard.scores.calibration import calibration
from freezeasguard.scores.comparisons import holm, paired_differences
from freezeasguard.scores.extractors import Extractors, extract
from freezeasguard.scores.kept import kept_share
from freezeasguard.scores.networks.efficientnet import pooled_and_statistics
from freezeasguard.scores.networks.frechet import frechet_distance
from freezeasguard.scores.networks.style import StyleFeatures
from freezeasguard.scores.registry import SCORES
from freezeasguard.scores.scoring import (
    FinalLosses,
    Reference,
    ScoredImages,
    compare_arms,
    compared_arms,
    kept_losses,
    score_arm,
)
from freezeasguard.scores.statistics import resample_clusters
from freezeasguard.settings.params import Domain, Score, parse_params
from freezeasguard.settings.profiles import profile_text

CONFIG = Score(bootstrap_resamples=20)
ROOT = Path(__file__).parent.parent


def extractors() -> Extractors:
    return Extractors(CONFIG, ROOT / SCORERS, 1)


@pytest.fixture
def data() -> CaseData:
    """Two classes a side, four images each: two of adaptation, one held out, one of mask learning."""
    parts = ["adaptation", "adaptation", "held_out", "mask_learning"]
    rows = [
        {
            "row": 4 * c + i,
            "side": side,
            "class": name,
            "part": part,
            "path": f"{name}{i}.png",
            "caption": f"{name} {i}",
        }
        for c, (side, name) in enumerate([("illegal", "a"), ("illegal", "b"), ("legal", "c"), ("legal", "d")])
        for i, part in enumerate(parts)
    ]
    return CaseData(pd.DataFrame(rows), torch.zeros(16, 2, 1, 2, 2), torch.zeros(16, 2, 2), torch.zeros(2, 2))


def reference(data: CaseData) -> Reference:
    """One unit vector a class for the recogniser; a score that is high on the illegal side alone."""
    index = data.index[data.index["part"] != "mask_learning"]
    classes = torch.tensor(["abcd".index(name) for name in index["class"]])
    illegal = torch.tensor((index["side"] == "illegal").to_numpy()).double()
    features = torch.randn(len(index), 3, generator=torch.Generator().manual_seed(0))
    return Reference(
        torch.tensor(index["row"].to_numpy()),
        {
            "recogniser": {"embedding": torch.eye(4)[classes], "found": torch.ones(len(index)).bool()},
            "nudenet_faces": {"score": illegal * 0.5},
            "efficientnet": {"features": features},
        },
    )


def test_reference_survives_its_file_and_keeps_the_order_asked_for(data: CaseData) -> None:
    real = Reference.from_tensors(reference(data).to_tensors())
    assert real.at("recogniser", [12, 0])["embedding"].tolist() == [[0, 0, 0, 1], [1, 0, 0, 0]]
    assert real.at("recogniser", [0])["found"].dtype == torch.bool


def test_calibration_reads_real_images_of_one_class_and_of_others(data: CaseData) -> None:
    names = ["recogniser", "nudenet_faces", "nudenet_faces_rate", "fd_efficientnet_lite0"]
    lines = calibration(data, reference(data), names, extractors(), seed=0)
    for side in ("illegal", "legal"):
        line = lines["recogniser"][side]
        assert (line["real_vs_real"], line["real_vs_other"]) == (0, 1) and line["n"] == 6 and line["n_missing"] == 0
    assert lines["recogniser"]["auc"] == lines["nudenet_faces"]["auc"] == 1
    assert (lines["nudenet_faces"]["illegal"]["real"], lines["nudenet_faces"]["legal"]["real"]) == (0.5, 0)
    assert lines["nudenet_faces_rate"]["illegal"]["real"] == 1
    features = reference(data).features["efficientnet"]["features"].numpy()
    expected = frechet_distance(features[:6], features[6:])
    assert lines["fd_efficientnet_lite0"]["illegal"]["real_vs_other"] == pytest.approx(expected)


def scored(values: list[float], files: list[str] | None = None) -> ScoredImages:
    """One arm: four images a side with the values given."""
    n = len(values)
    table = pd.DataFrame(
        {
            "side": ["illegal"] * (n // 2) + ["legal"] * (n // 2),
            "part": ["adaptation", "held_out"] * (n // 2),
            "class": ["a", "a", "b", "b", "c", "c", "d", "d"],
            "reference_row": range(n),
            "file": files or [f"{i}.png" for i in range(n)],
            "recogniser": values,
            "found_recogniser": [True] * (n - 1) + [False],
        }
    )
    features: dict[str, Features] = {"efficientnet": {"features": torch.zeros(n, 3)}}
    return ScoredImages(table, features)


def test_arms_are_compared_on_the_same_images_and_corrected_together() -> None:
    full = scored([0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3, 0.4])
    shifted = scored([0.4, 0.5, 0.6, 0.7, 0.1, 0.2, 0.3, 0.4])
    arms = {"pretrained": full, "full": full, "freezeasguard": shifted, "random": full}
    found = compare_arms(arms, ["recogniser"], 99, 0)["recogniser"]
    assert found["illegal"]["freezeasguard - full"]["interval"] == {
        "value": pytest.approx(0.3),
        "low": pytest.approx(0.3),
        "high": pytest.approx(0.3),
    }
    assert found["legal"]["freezeasguard - random"]["interval"]["value"] == 0
    ps = [difference["p"] for side in found.values() for difference in side.values()]
    assert len(ps) == 6  # three comparisons a side, one family
    assert [d["p_holm"] for side in found.values() for d in side.values()] == pytest.approx(holm(ps))


def test_arms_with_other_images_are_refused() -> None:
    other = scored([0.0] * 8, [f"other-{i}.png" for i in range(8)])
    with pytest.raises(FreezeAsGuardError, match="arms full and random have other images"):
        compare_arms({"full": scored([0.0] * 8), "random": other}, ["recogniser"], 9, 0)


def test_scores_compared_together_are_what_each_is_alone() -> None:
    rng = np.random.default_rng(1)
    arms = {
        arm: scored(rng.normal(size=8).tolist()) for arm in ("pretrained", "full", "uce", "freezeasguard", "random")
    }
    for arm in arms.values():
        arm.table["clip_tiny"] = rng.normal(size=8)
    found = compare_arms(arms, ["recogniser", "clip_tiny"], 50, seed=5)
    assert list(found) == ["recogniser", "clip_tiny"]
    pairs = compared_arms(list(arms))
    for name, sides in found.items():
        expected = {}
        for side in ("illegal", "legal"):
            tables = {arm: images.table[images.table["side"] == side] for arm, images in arms.items()}
            clusters = tables["full"]["class"].tolist(), tables["full"]["reference_row"].tolist()
            resamples = list(resample_clusters(clusters, 50, np.random.default_rng(5)))
            values = {arm: table[name].to_numpy() for arm, table in tables.items()}
            expected[side] = paired_differences(values, pairs, resamples)
        corrected = holm([d.p for one in expected.values() for d in one.values()])
        assert [list(side) for side in sides.values()] == [[f"{a} - {b}" for a, b in pairs]] * 2
        flat = [difference for side in sides.values() for difference in side.values()]
        for mine, alone, p in zip(flat, (d for one in expected.values() for d in one.values()), corrected, strict=True):
            assert mine == {**dataclasses.asdict(alone), "p_holm": p}


def test_every_mask_meets_the_random_one_of_its_size() -> None:
    arms = ["pretrained", "uce-before", "full", "uce", "freezeasguard", "random", "freezeasguard-70", "random-70"]
    arms += ["freezeasguard-row", "random-row"]
    pairs = compared_arms(arms)
    assert ("uce-before", "pretrained") in pairs and ("uce", "full") in pairs
    expected = {("freezeasguard", "random"), ("freezeasguard-70", "random-70"), ("freezeasguard-row", "random-row")}
    rivals = {(arm, "uce") for arm, _ in expected}
    assert expected | rivals <= set(pairs) and len(pairs) == 1 + 7 + 3 + 3
    assert ("anchored", "imma") in compared_arms(["pretrained", "full", "imma", "anchored-before", "anchored"])


def test_kept_is_one_for_full_and_zero_for_the_pretrained_model() -> None:
    ends = {
        "pretrained": FinalLosses(0.2, [0.3, 0.1], 0.4),
        "full": FinalLosses(0.1, [0.1, 0.1], 0.2),
        "imma": FinalLosses(0.175, [0.25, 0.1], 0.3),
    }
    kept = kept_losses({arm: {"illegal": losses} for arm, losses in ends.items()})
    assert [kept[arm]["illegal"]["kept"] for arm in ends] == pytest.approx([0, 1, 0.25])
    assert [kept[arm]["illegal"]["fixed_noise"] for arm in ends] == [0.2, 0.1, 0.175]
    assert [kept[arm]["illegal"]["kept_held_out"] for arm in ends] == pytest.approx([0, 1, 0.5])
    assert [kept[arm]["illegal"]["kept_quarter_1"] for arm in ends] == pytest.approx([0, 1, 0.25])
    assert [kept[arm]["illegal"]["kept_quarter_2"] for arm in ends] == [None, None, None]
    unseen = kept_losses({arm: {"illegal": losses._replace(held_out=None)} for arm, losses in ends.items()})
    assert unseen["imma"]["illegal"]["kept_held_out"] is None
    # A fall of 1% is no scale to measure by, and a rise is none either.
    assert kept_share(0.2, 0.198, 0.199) is None and kept_share(0.2, 0.21, 0.2) is None


def test_an_arm_is_scored_by_side_and_part_with_its_misses(data: CaseData) -> None:
    table = scored([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    scores = score_arm(table, data, reference(data), ["recogniser"], CONFIG, seed=0)
    assert scores["illegal"]["all"]["recogniser"]["value"] == pytest.approx(0.25)
    assert scores["legal"]["held_out"]["recogniser"]["value"] == pytest.approx(0.7)
    assert [scores[side]["all"]["recogniser"]["n_missing"] for side in ("illegal", "legal")] == [0, 1]


def test_features_do_not_depend_on_the_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    names = ["recogniser", "style_efficientnet_lite0", "fd_efficientnet_lite0"]
    whole = extract(paths, names, extractors())
    monkeypatch.setattr("freezeasguard.scores.extractors.CHUNK", 2)
    pieces = extract(paths, names, extractors())
    assert whole.keys() == pieces.keys() == {"recogniser", "efficientnet"}
    for name, features in whole.items():
        for key, tensor in features.items():
            assert torch.allclose(tensor.double(), pieces[name][key].double(), atol=1e-5)


def test_one_pass_of_efficientnet_serves_both_stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    images = read_images(paths)
    alone = {"features": pooled_and_statistics(images)[0], "embedding": StyleFeatures(ROOT / SCORERS).extract(images)}
    passes: list[int] = []

    def look(images: torch.Tensor, blocks: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        passes.append(len(images))
        return pooled_and_statistics(images, blocks)

    monkeypatch.setattr("freezeasguard.scores.networks.efficientnet.pooled_and_statistics", look)
    found = extract(paths, ["style_efficientnet_lite0", "fd_efficientnet_lite0"], extractors())["efficientnet"]
    assert passes == [3] and found.keys() == alone.keys()
    assert all(torch.equal(found[key], alone[key]) for key in alone)


def test_the_papers_scores_ask_for_their_files() -> None:
    with pytest.raises(FreezeAsGuardError, match=r"score\.csd_weights is null"):
        extractors().of(SCORES["csd"])
    with pytest.raises(FreezeAsGuardError, match=r"score\.inception_weights is null"):
        extractors().of(SCORES["fid"])


def test_domains_have_scores_and_unknown_ones_are_told() -> None:
    assert {name for source in SOURCES.values() for name in source.scores} <= SCORES.keys()
    assert Domain(source="embedded-orl").score_names()[0] == "dlib"
    assert Domain(source="folder", path=Path("x"), scores=["csd", "fid"]).score_names() == ("csd", "fid")
    values = yaml.safe_load(profile_text("smoke"))
    values["domains"]["portraits"]["scores"] = ["fn-l"]
    with pytest.raises(FreezeAsGuardError, match="there is no score 'fn-l'; choose from recogniser"):
        parse_params(values, Path("params.yaml"))
