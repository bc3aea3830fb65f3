"""Extractors go to the device, and compute in the precision that is asked for where the score allows it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from freezeasguard.models import computing
from freezeasguard.models.images import to_uint8
from freezeasguard.scores import extractors as module
from freezeasguard.scores.base import Look
from freezeasguard.scores.extractors import Extractors, extract
from freezeasguard.scores.networks.pairs import Lpips, Topiq
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.compute import Compute
from freezeasguard.settings.params import Score as ScoreSettings

SCORERS = Path(__file__).parent.parent.parent / "data/models/scorers"
SETTINGS = ScoreSettings(bootstrap_resamples=2)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    from PIL import Image

    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, pixels in zip(paths, to_uint8(images), strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def test_what_can_be_brought_to_the_device_is(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[Any] = []
    network = SimpleNamespace(to=moved.append)
    loads = {"recogniser": lambda *_: Look(network, lambda _, images: {}), "csd": lambda *_: lambda images: {}}
    for name, load in loads.items():
        monkeypatch.setattr(type(SCORES[name]), "load", load)
    for device, expected in (("cpu", []), ("cuda", ["cuda"])):
        extractors = Extractors(SETTINGS, SCORERS, 1, device)
        for name in loads:  # a score of one's own may be a plain function
            extractors.of(SCORES[name])
            extractors.of(SCORES[name])
        assert moved == expected


def test_sets_features_stay_in_float32_and_embeddings_follow_compute(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["clip_tiny", "recogniser", "fd_efficientnet_lite0"]
    exact = extract(files, names, Extractors(SETTINGS, SCORERS, 1))
    low = Compute(precision="bfloat16")
    on_cpu = extract(files, names, Extractors(SETTINGS, SCORERS, 1, compute=low))
    monkeypatch.setattr(computing, "LOW_PRECISION", frozenset({"cpu"}))
    rounded = extract(files, names, Extractors(SETTINGS, SCORERS, 1, compute=low))
    for name, features in exact.items():
        for key, tensor in features.items():
            assert torch.equal(on_cpu[name][key], tensor)
            assert rounded[name][key].dtype == tensor.dtype
    assert torch.equal(rounded["efficientnet"]["features"], exact["efficientnet"]["features"])
    for name in ("clip_tiny", "recogniser"):
        own, other = exact[name]["embedding"], rounded[name]["embedding"]
        assert not torch.equal(own, other)
        assert torch.cosine_similarity(own, other).min() > 0.99


@pytest.mark.parametrize("name", sorted(SCORES))
def test_every_score_of_sets_computes_in_float32(name: str) -> None:
    from freezeasguard.scores.rules import FrechetScore, KernelScore

    score = SCORES[name]
    sharing = [other for other in SCORES.values() if other.extractor == score.extractor]
    if any(isinstance(other, FrechetScore | KernelScore) for other in sharing):
        assert score.float32


@pytest.mark.parametrize("make", [Topiq, Lpips])
def test_pairs_reach_the_device_in_batches(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    class Metric(torch.nn.Module):
        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            seen.append((one.device.type, len(other)))
            return one.mean((1, 2, 3))

    import sys

    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=lambda name, **_: Metric()))
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=lambda net, verbose: Metric()))
    with pytest.raises(NotImplementedError, match="meta"):  # the values are asked for on the CPU
        make().to("meta")(torch.zeros(3, 3, 8, 8), torch.zeros(3, 3, 8, 8), batch_size=2)
    assert seen == [("meta", 2)]


def test_tf32_is_set_where_scores_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(module, "configure", lambda compute, device: asked.append((compute.tf32, device)))
    Extractors(SETTINGS, SCORERS, 1, "cuda", Compute(tf32=True))
    assert asked == [(True, "cuda")]
