from __future__ import annotations

from pathlib import Path

import pytest
import torch

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.scores.networks.recogniser import Recogniser, auc, identity_distance, pair_auc


def test_distances_of_known_vectors() -> None:
    a = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 0]])
    b = torch.tensor([[2.0, 0], [0, 3], [-4, 0], [1, 1]])
    torch.testing.assert_close(identity_distance(a, b), torch.tensor([0.0, 1.0, 2.0, 1 - 0.5**0.5]))


def test_distance_pairs_rows_is_symmetric_and_ignores_length() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 7, 5, generator=generator)
    distances = identity_distance(a, b)
    assert distances.shape == (7,)
    torch.testing.assert_close(identity_distance(b, a), distances)
    torch.testing.assert_close(identity_distance(3 * a, 0.1 * b), distances)
    torch.testing.assert_close(identity_distance(a, a), torch.zeros(7), rtol=0, atol=1e-6)
    assert not torch.allclose(identity_distance(a, b.roll(1, 0)), distances)


def brute_force_auc(embeddings: torch.Tensor, identities: torch.Tensor) -> float:
    pairs = [(i, j) for i in range(len(embeddings)) for j in range(i)]
    score = {(i, j): float(embeddings[i] @ embeddings[j]) for i, j in pairs}
    same = [p for p in pairs if identities[p[0]] == identities[p[1]]]
    other = [p for p in pairs if identities[p[0]] != identities[p[1]]]
    wins = [(score[s] > score[o]) + 0.5 * (score[s] == score[o]) for s in same for o in other]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("seed", range(3))
def test_pair_auc_is_the_share_of_ordered_pairs(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Small whole numbers: exact products and many ties.
    embeddings = torch.randint(-2, 3, (14, 3), generator=generator).float()
    identities = torch.randint(4, (14,), generator=generator)
    expected = brute_force_auc(embeddings, identities)
    assert 0 < expected < 1
    assert pair_auc(embeddings, identities) == pytest.approx(expected)


def test_pair_auc_at_its_ends() -> None:
    identities = torch.tensor([0, 0, 1, 1])
    assert pair_auc(torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]), identities) == 1
    assert pair_auc(torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]]), identities) < 0.5
    assert pair_auc(torch.ones(4, 2), identities) == 0.5


def test_auc_of_known_scores() -> None:
    assert auc(torch.tensor([3.0, 2]), torch.tensor([1.0, 0, -1])) == 1
    assert auc(torch.tensor([1.0, 0, -1]), torch.tensor([3.0, 2])) == 0
    # Of six pairs two are won, two are tied.
    assert auc(torch.tensor([2.0, 0]), torch.tensor([0.0, 2, 1])) == 0.5
    assert auc(torch.tensor([2.0, 2]), torch.tensor([0.0, 2, 1])) == pytest.approx(5 / 6)


def test_round_trip_through_disk(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recogniser = Recogniser(width=4, dimension=6)
        images = torch.rand(3, 3, 64, 64) * 2 - 1
    embeddings, presence = recogniser.extract(images, batch_size=2)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    assert ((presence > 0) & (presence < 1)).all()
    recogniser.save(tmp_path)
    again, presence_again = Recogniser.load(tmp_path).extract(images)
    torch.testing.assert_close(again, embeddings, rtol=0, atol=1e-2)  # stored in half precision
    torch.testing.assert_close(presence_again, presence, rtol=0, atol=1e-2)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(FreezeAsGuardError, match="recogniser.safetensors is missing"):
        Recogniser.load(tmp_path)
