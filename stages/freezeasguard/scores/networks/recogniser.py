"""Recogniser of drawn figures: the embedded stand-in for DeepFace's face recognisers.

A small convolutional network trained with a cosine softmax on *other* figures; like a face recogniser
it maps an image to a unit vector, near for two images of one figure. A second head plays the face
detector: it says whether the image shows a figure at all.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from freezeasguard.errors import FreezeAsGuardError

RECOGNISER_FILE = "recogniser.safetensors"
PRESENCE_THRESHOLD = 0.5
"""A figure counts as missing where the network gives its presence a lower probability."""


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        self.skip = nn.Conv2d(n_in, n_out, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class Recogniser(nn.Module):
    """Images [n, 3, 64, 64] in -1..1 -> unit embeddings [n, d] and presence logits [n]."""

    def __init__(self, width: int = 32, dimension: int = 64) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            _Block(3, width), _Block(width, 2 * width), _Block(2 * width, 3 * width), _Block(3 * width, 4 * width)
        )
        self.embed = nn.Linear(4 * width * 16, dimension)
        self.presence = nn.Linear(4 * width, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.blocks(images)
        embedding = F.normalize(self.embed(features.flatten(1)), dim=1)
        return embedding, self.presence(features.mean((2, 3))).squeeze(1)

    @torch.no_grad()
    def extract(self, images: Tensor, batch_size: int = 256) -> tuple[Tensor, Tensor]:
        """Unit embeddings [n, d] and presence probabilities [n]."""
        self.eval()
        device = self.presence.weight.device
        parts = [self(batch.to(device)) for batch in images.split(batch_size)]
        return torch.cat([e for e, _ in parts]).float().cpu(), torch.cat([p for _, p in parts]).float().sigmoid().cpu()

    def save(self, folder: Path) -> None:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in self.state_dict().items()}
        config = json.dumps({"width": self.blocks[0].skip.out_channels, "dimension": self.embed.out_features})
        save_file(tensors, folder / RECOGNISER_FILE, metadata={"config": config})

    @classmethod
    def load(cls, folder: Path) -> Recogniser:
        path = folder / RECOGNISER_FILE
        if not path.is_file():
            raise FreezeAsGuardError(
                f"{path} is missing; restore it with `git checkout -- {path}` or run `dvc repro -f pretrain`"
            )
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            config = json.loads(file.metadata()["config"])
        model = cls(**config)
        tensors = {n: t.float() if t.is_floating_point() else t for n, t in load_file(path).items()}
        model.load_state_dict(tensors)
        return model.eval()


def identity_distance(generated: Tensor, reference: Tensor) -> Tensor:
    """1 - cosine similarity between each generated image's embedding and its prompt's reference.

    Args:
        generated, reference: embeddings [n, d]; row i of one belongs to row i of the other.
    Returns:
        distances [n] in 0..2; 0 where the embeddings point the same way.
    """
    return 1 - F.cosine_similarity(generated, reference, dim=1)


def auc(positive: Tensor, negative: Tensor) -> float:
    """Area under the ROC curve of telling `positive` from `negative` scores, each [n]: a share in 0..1.

    The Mann-Whitney statistic: how often the positive one of two is the higher, ties counted half.
    """
    from scipy.stats import rankdata

    n_positive, n_negative = len(positive), len(negative)
    ranks = rankdata(torch.cat([positive, negative]).numpy())[:n_positive]
    return float((ranks.sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def pair_auc(embeddings: Tensor, identities: Tensor) -> float:
    """AUC of telling same-identity pairs from different-identity pairs by the product of their embeddings [n, d]."""
    similarity = embeddings @ embeddings.T
    rows, columns = torch.triu_indices(len(embeddings), len(embeddings), offset=1)
    scores, same = similarity[rows, columns], identities[rows] == identities[columns]
    return auc(scores[same], scores[~same])
