from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from safetensors.numpy import load_file
from torch import Tensor

from freezeasguard.data.embedded.illustrators import STYLES
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.miniature.gates_domains import drawings_by_style
from freezeasguard.miniature.train_style import generic_styles, within_style_whitening
from freezeasguard.scores.networks.efficientnet import load_efficientnet, pooled_and_statistics, weight_file
from freezeasguard.scores.networks.recogniser import identity_distance, pair_auc
from freezeasguard.scores.networks.style import BLOCKS, STYLE_FILE, StyleFeatures, block_statistics

SCORERS = Path(__file__).parents[2] / "data/models/scorers"
EACH = 5


@pytest.fixture(scope="module")
def style() -> StyleFeatures:
    return StyleFeatures(SCORERS)


@pytest.fixture(scope="module")
def drawings() -> tuple[Tensor, Tensor]:
    return drawings_by_style(EACH, seed=1)


@pytest.fixture(scope="module")
def embeddings(style: StyleFeatures, drawings: tuple[Tensor, Tensor]) -> Tensor:
    return style.extract(drawings[0])


def network_input(images: Tensor) -> Tensor:
    resized = torch.nn.functional.interpolate(images, size=224, mode="bilinear", antialias=True)
    return (resized * 127.5 + 127.5 - 127) / 128


def test_tells_unseen_illustrators_apart(embeddings: Tensor, drawings: tuple[Tensor, Tensor]) -> None:
    assert pair_auc(embeddings, drawings[1]) >= 0.9  # the bound of the gate style_auc_unseen


def test_an_image_is_at_no_distance_from_itself_alone(
    style: StyleFeatures, embeddings: Tensor, drawings: tuple[Tensor, Tensor]
) -> None:
    again = style.extract(drawings[0][:3])  # in another batch
    torch.testing.assert_close(identity_distance(again, embeddings[:3]), torch.zeros(3), rtol=0, atol=1e-5)
    assert (identity_distance(again, embeddings[EACH : EACH + 3]) > 0.1).all()
    assert torch.equal(style.extract(drawings[0][:3]), again)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(embeddings)))


def test_folded_batch_norms_change_nothing(drawings: tuple[Tensor, Tensor]) -> None:
    as_published = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weight_file())).eval()
    images = drawings[0][::EACH][:3]
    with torch.no_grad():
        expected = as_published.extract_features(network_input(images)).mean((2, 3))
    torch.testing.assert_close(pooled_and_statistics(images)[0], expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in load_efficientnet().modules())


def test_is_what_numpy_computes_from_the_file(embeddings: Tensor, drawings: tuple[Tensor, Tensor]) -> None:
    network, maps = load_efficientnet(), {}
    hooks = [
        network._blocks[i].register_forward_hook(lambda _, __, out, i=i: maps.update({i: out.numpy()})) for i in BLOCKS
    ]
    with torch.no_grad():
        network.extract_features(network_input(drawings[0][:4]))
    for hook in hooks:
        hook.remove()
    rows = [x.astype(np.float64).reshape(*x.shape[:2], -1) for _, x in sorted(maps.items())]
    statistics = np.concatenate([y for x in rows for y in (x.mean(2), x.std(2, ddof=1))], axis=1)
    stored = {name: t.astype(np.float64) for name, t in load_file(SCORERS / STYLE_FILE).items()}
    expected = (statistics - stored["mean"]) @ stored["whitening"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings[:4].numpy(), expected, atol=1e-4)


def test_one_forward_pass_serves_the_frechet_distance_unchanged(drawings: tuple[Tensor, Tensor]) -> None:
    with torch.no_grad():
        expected = load_efficientnet().extract_features(network_input(drawings[0][:2])).mean((2, 3))
    pooled, _ = pooled_and_statistics(drawings[0][:2], BLOCKS)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-5)
    assert torch.equal(pooled, pooled_and_statistics(drawings[0][:2])[0])


def test_size_of_the_file_and_a_missing_one(tmp_path: Path) -> None:
    assert (SCORERS / STYLE_FILE).stat().st_size < 1e6
    with pytest.raises(FreezeAsGuardError, match=f"{STYLE_FILE} is missing"):
        StyleFeatures(tmp_path)


def test_no_hand_under_test_is_in_the_whitening() -> None:
    styles = set(generic_styles())
    assert {"toon-head", "dylan", "voxel-art"} <= styles and len(styles) == 46
    # Lisa Wischofsky drew adventurer and lorelei, Pablo Stanley open-peeps, avataaars and bottts.
    assert not styles & {*STYLES, "adventurer-neutral", "notionists-neutral", "lorelei", "avataaars", "bottts"}


@pytest.mark.parametrize("shrinkage", [0.0, 0.1])
def test_whitening_of_differences_within_a_style(shrinkage: float) -> None:
    rng = np.random.default_rng(0)
    styles = np.repeat(np.arange(4), 50)
    data = rng.normal(size=(4, 6))[styles] * 5 + rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 3
    mean, whitening = within_style_whitening(torch.tensor(data), torch.tensor(styles), shrinkage)
    np.testing.assert_allclose(mean, data.mean(0), rtol=1e-5)

    # In units of each statistic's deviation, as shrinking towards one variance needs.
    scale = data.std(0, ddof=1)
    within = np.concatenate([(d - d.mean(0)) / scale for d in np.split(data, 4)])
    covariance = (1 - shrinkage) * within.T @ within / 200
    covariance += shrinkage * np.square(within).sum() / 200 / 6 * np.eye(6)
    mapped = whitening.double().numpy() * scale[:, None]
    np.testing.assert_allclose(mapped.T @ covariance @ mapped, np.eye(6), atol=2e-3)


def test_a_dead_channel_stays_finite() -> None:
    data = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    data[:, 1] = 0
    mean, whitening = within_style_whitening(data, torch.arange(2).repeat_interleave(10))
    assert torch.isfinite(whitening).all() and mean[1] == 0
    assert torch.isfinite(whitening.half()).all()


def test_statistics_have_a_mean_and_a_deviation_a_channel(style: StyleFeatures) -> None:
    flat = torch.full((1, 3, 64, 64), 0.3)
    statistics = block_statistics(torch.cat([flat, flat]))
    assert statistics.shape == (2, len(style.mean)) == (2, 2 * (80 + 192))
    assert torch.equal(statistics[0], statistics[1])
