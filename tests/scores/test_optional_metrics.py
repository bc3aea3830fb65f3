"""The extra `paper`: what a machine without it is told, how its packages are called, and the real Inception."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.scores.networks.inception import InceptionFeatures
from freezeasguard.scores.networks.pairs import Lpips, Topiq


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    generated, reference = torch.rand(2, 5, 3, 8, 8, generator=generator) * 2 - 1
    return generated, reference


@pytest.mark.parametrize(
    ("package", "make"),
    [("torch_fidelity", lambda: InceptionFeatures(Path("x.pth"))), ("pyiqa", Topiq), ("lpips", Lpips)],
)
def test_an_absent_package_is_named(package: str, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FreezeAsGuardError) as error:
        make()
    assert str(error.value).startswith(f"{package} ")
    assert 'pip install -e ".[paper]"' in str(error.value)


@pytest.mark.parametrize(("package", "make"), [("pyiqa", Topiq), ("lpips", Lpips)])
def test_a_torchvision_of_another_torch_is_no_crash(
    package: str, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / f"{package}.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FreezeAsGuardError, match=r"nms does not exist.*whose torchvision matches"):
        make()


class Recorder:
    """Stands in for a package's metric: told apart by order and range of what it is given."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.batches = shape, []

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        self.batches.append(len(first))
        return (first.mean((1, 2, 3)) - 3 * second.mean((1, 2, 3))).reshape(-1, *self.shape)


def test_topiq_gets_distorted_then_reference_in_unit_range(
    pairs: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder((1,))
    asked: dict[str, Any] = {}

    def create_metric(name: str, **options: Any) -> Recorder:
        asked.update(options, name=name)
        return recorder

    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=create_metric))
    generated, reference = pairs
    scores = Topiq()(generated, reference, batch_size=2)
    expected = ((generated + 1) / 2).mean((1, 2, 3)) - 3 * ((reference + 1) / 2).mean((1, 2, 3))
    torch.testing.assert_close(scores, expected)
    assert recorder.batches == [2, 2, 1]
    assert asked["name"] == "topiq_fr-pipal"


def test_lpips_gets_images_in_its_own_range(pairs: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder((1, 1, 1))
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=lambda net, verbose: recorder))
    generated, reference = pairs
    scores = Lpips()(generated, reference, batch_size=2)
    torch.testing.assert_close(scores, generated.mean((1, 2, 3)) - 3 * reference.mean((1, 2, 3)))
    assert recorder.batches == [2, 2, 1]
    with pytest.raises(FreezeAsGuardError, match=r"pairs of one size, got \[5, 3, 8, 8\] and \[4, 3, 8, 8\]"):
        Lpips()(generated, reference[:4])


@pytest.mark.parametrize(
    ("package", "factory", "make", "file"),
    [
        ("pyiqa", "create_metric", Topiq, "cfanet_fr_pipal_res50-69bbe5ba.pth"),
        ("lpips", "LPIPS", Lpips, "alexnet-owt-7be5be79.pth"),
    ],
)
def test_weights_that_cannot_be_had_are_named(
    package: str, factory: str, make: Callable[[], Any], file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setitem(sys.modules, package, SimpleNamespace(**{factory: offline}))
    with pytest.raises(FreezeAsGuardError, match=f"https://.*{file} into .*hub"):
        make()


def test_topiq_refuses_a_missing_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace())
    with pytest.raises(FreezeAsGuardError, match="topiq.pth is missing; download https"):
        Topiq(tmp_path / "topiq.pth")


def test_real_inception_with_random_weights(tmp_path: Path) -> None:
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    from freezeasguard.scores.networks.inception import inception_module

    module = inception_module()
    assert "torch_fidelity" not in sys.modules  # the bare package is gone again
    path = tmp_path / "inception.pth"
    with pytest.raises(FreezeAsGuardError, match="is missing; download https"):
        InceptionFeatures(path)
    path.write_bytes(b"broken")
    with pytest.raises(FreezeAsGuardError, match="does not hold FID's Inception"):
        InceptionFeatures(path)

    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = module.FeatureExtractorInceptionV3("random", ["2048"])
        for weight in network.parameters():
            if weight.ndim == 4:  # as drawn, the features would fade to 1e-8
                torch.nn.init.kaiming_normal_(weight)
    torch.save(network.state_dict(), path)
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = InceptionFeatures(path)(images, batch_size=2)
    pixels = ((images + 1) * 127.5).round().byte()
    assert features.shape == (3, 2048)
    np.testing.assert_allclose(features, network(pixels)[0].numpy(), rtol=1e-3, atol=1e-4)
    assert np.abs(features[0] - features[1]).max() > 0.01
