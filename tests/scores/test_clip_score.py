from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.images import to_uint8
from freezeasguard.scores.networks.clip import ClipFeatures, clip_score


def test_scores_of_known_vectors_are_not_clipped() -> None:
    images = torch.tensor([[2.0, 0], [1, 0], [1, 0], [3, 4]])
    texts = torch.tensor([[5.0, 0], [0, 1], [-1, 0], [1, 0]])
    torch.testing.assert_close(clip_score(images, texts), torch.tensor([100.0, 0, -100, 60]))


def test_scores_pair_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 6, 5, generator=generator)
    scores = clip_score(images, texts)
    assert scores.shape == (6,)
    by_hand = [100 * float(i @ t) / float(i.norm() * t.norm()) for i, t in zip(images, texts, strict=True)]
    torch.testing.assert_close(scores, torch.tensor(by_hand))
    assert not torch.allclose(clip_score(images, texts.roll(1, 0)), scores)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FreezeAsGuardError, match="holds no CLIP weights"):
        ClipFeatures(tmp_path)


TINY = Path(__file__).parents[2] / "data/models/scorers/clip"
MEAN, STD = [0.48, 0.45, 0.41], [0.27, 0.26, 0.28]


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A CLIP as releases ship it: with random weights, for 32 px, and its preprocessing."""
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"vocab_size": 895, "max_position_embeddings": 48, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(
        vision_config={**tower, "image_size": 32, "patch_size": 8}, text_config={**tower, **words}, projection_dim=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, tmp_path / name)
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "resample": 3,
        "image_mean": MEAN,
        "image_std": STD,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return tmp_path


def test_a_released_clip_sees_images_as_it_was_trained(released: Path) -> None:
    """Any size: the shorter side to its pixels, the middle square, its mean and deviation - by PIL and by hand here."""
    images = torch.rand(3, 3, 80, 100, generator=torch.Generator().manual_seed(1)) * 2 - 1
    clip = ClipFeatures(released)
    pixels = []
    for array in to_uint8(images):
        resized = Image.fromarray(array).resize((40, 32), Image.Resampling.BICUBIC).crop((4, 0, 36, 32))
        pixels.append((np.asarray(resized) / 255 - MEAN) / STD)
    expected = torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        by_hand = clip.model.get_image_features(pixel_values=expected)
    by_hand = getattr(by_hand, "pooler_output", by_hand)
    torch.testing.assert_close(clip.images(images), by_hand, atol=1e-5, rtol=1e-5)
    assert clip.texts(["a photo"]).shape == (1, 8)


def test_images_of_another_size_than_a_bare_models_are_refused(released: Path) -> None:
    (released / "preprocessor_config.json").unlink()
    clip = ClipFeatures(released)
    assert clip.images(torch.zeros(2, 3, 32, 32)).shape == (2, 8)
    with pytest.raises(FreezeAsGuardError, match="for 32 px without a preprocessor_config.json.* are 100x80"):
        clip.images(torch.zeros(1, 3, 80, 100))
