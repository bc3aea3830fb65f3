"""CLIP score: how well an image shows its prompt."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.images import to_uint8


def clip_score(image_features: Tensor, text_features: Tensor) -> Tensor:
    """100 cosine(image, prompt) [n] for features [n, d]; not clipped at zero."""
    return 100 * F.cosine_similarity(image_features, text_features, dim=1)


PREPROCESSING = "preprocessor_config.json"


class ClipFeatures:
    """A CLIP folder in transformers' layout: its two towers as feature extractors.

    A released model brings the resizing, crop and normalisation it was trained with; one without, as the embedded
    world's, takes images of its own size in -1..1.
    """

    device = "cpu"

    def __init__(self, folder: Path) -> None:
        from transformers import CLIPModel, CLIPTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        if not any(folder.glob("*.safetensors")):
            raise FreezeAsGuardError(f"{folder} holds no CLIP weights; restore them with `git checkout -- {folder}`")
        self.model = CLIPModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        has_own = (folder / PREPROCESSING).is_file()
        self.preprocess = CLIPImageProcessorPil.from_pretrained(folder) if has_own else None
        self.folder = folder

    def to(self, device: str) -> ClipFeatures:
        self.model, self.device = self.model.to(device), device
        return self

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Images [n, 3, h, w] in -1..1 -> `embedding` [n, d]."""
        return {"embedding": self.images(images)}

    @torch.no_grad()
    def images(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """Images [n, 3, h, w] in -1..1 -> [n, d].

        Raises:
            FreezeAsGuardError: the model says nothing of preprocessing, and the images are not of its size.
        """
        parts = []
        for batch in images.split(batch_size):
            pooled = self.model.vision_model(pixel_values=self._pixels(batch).to(self.device)).pooler_output
            parts.append(self.model.visual_projection(pooled).float().cpu())
        return torch.cat(parts)

    def _pixels(self, images: Tensor) -> Tensor:
        if self.preprocess is not None:
            return self.preprocess(list(to_uint8(images)), return_tensors="pt").pixel_values
        size = self.model.config.vision_config.image_size
        if tuple(images.shape[2:]) != (size, size):
            raise FreezeAsGuardError(
                f"{self.folder} is a CLIP for {size} px without a {PREPROCESSING}, and the images are "
                f"{images.shape[3]}x{images.shape[2]}; add that file of the release, or score with another CLIP"
            )
        return images

    @torch.no_grad()
    def texts(self, captions: list[str], batch_size: int = 1024) -> Tensor:
        """Captions -> [n, d]; longer ones are cut at the model's length."""
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        pooled = [self.model.text_model(input_ids=b.to(self.device)).pooler_output for b in ids.split(batch_size)]
        return self.model.text_projection(torch.cat(pooled)).float().cpu()
