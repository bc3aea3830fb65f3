"""CLIP score: how well an image shows its prompt."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError


def clip_score(image_features: Tensor, text_features: Tensor) -> Tensor:
    """100 cosine(image, prompt) [n] for features [n, d]; not clipped at zero."""
    return 100 * F.cosine_similarity(image_features, text_features, dim=1)


class ClipFeatures:
    """A CLIP folder in transformers' layout: its two towers as feature extractors."""

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        if not any(folder.glob("*.safetensors")):
            raise FreezeAsGuardError(f"{folder} holds no CLIP weights; restore them with `git checkout -- {folder}`")
        self.model = CLIPModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Images [n, 3, h, w] in -1..1 -> `embedding` [n, d]."""
        return {"embedding": self.images(images)}

    @torch.no_grad()
    def images(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """Images [n, 3, h, w] in -1..1, of the size the model was trained at -> [n, d]."""
        parts = []
        for batch in images.split(batch_size):
            pooled = self.model.vision_model(pixel_values=batch).pooler_output
            parts.append(self.model.visual_projection(pooled))
        return torch.cat(parts)

    @torch.no_grad()
    def texts(self, captions: list[str]) -> Tensor:
        """Captions -> [n, d]; longer ones are cut at the model's length."""
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        pooled = self.model.text_model(input_ids=ids).pooler_output
        return self.model.text_projection(pooled)
