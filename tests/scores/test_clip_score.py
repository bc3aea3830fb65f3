from __future__ import annotations

from pathlib import Path

import pytest
import torch

from freezeasguard.errors import FreezeAsGuardError
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
