"""Cached latents and text embeddings of a case: what every trainer and every mask learner reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from freezeasguard.errors import FreezeAsGuardError

if TYPE_CHECKING:  # tables and surveys read the names of the sides, and start faster without torch
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class LatentSet:
    """Images as latents with their captions as embeddings, in the order of the case's index."""

    latents: Tensor
    """[n, 2, c, h, w]; [:, 1] is the mirrored image."""
    text: Tensor
    """[n, tokens, d]"""

    def __post_init__(self) -> None:
        if len(self.latents) != len(self.text):
            raise FreezeAsGuardError(f"{len(self.latents)} latents for {len(self.text)} text embeddings")
        if len(self.latents) == 0:
            raise FreezeAsGuardError("no images to train on; check the split's counts")

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device | str) -> LatentSet:
        return replace(self, latents=self.latents.to(device), text=self.text.to(device))

    def sample(self, n: int, generator: torch.Generator, *, flip: bool = True) -> tuple[Tensor, Tensor]:
        """A batch drawn with replacement: latents [n, c, h, w] (each mirrored or not) and text."""
        import torch

        index = torch.randint(len(self), (n,), generator=generator)
        mirrored = torch.randint(2 if flip else 1, (n,), generator=generator)
        return self.latents[index, mirrored].contiguous().float(), self.text[index].float()

    def join(self, other: LatentSet) -> LatentSet:
        import torch

        return LatentSet(torch.cat([self.latents, other.latents]), torch.cat([self.text, other.text]))


@dataclass(frozen=True)
class CaseData:
    """All of a case's encoded images, with the empty prompt for guidance."""

    index: pd.DataFrame
    """A row an image: row, side, class, subject, part, path, caption."""
    latents: Tensor
    text: Tensor
    empty_text: Tensor
    """[tokens, d]"""

    def select(self, side: str, parts: Sequence[str]) -> LatentSet:
        import torch

        rows = torch.tensor(self.rows(side, parts).index.to_numpy())
        return LatentSet(self.latents[rows], self.text[rows])

    def rows(self, side: str, parts: Sequence[str]) -> pd.DataFrame:
        return self.index.loc[(self.index["side"] == side) & self.index["part"].isin(parts)]

    @classmethod
    def load(cls, folder: Path) -> CaseData:
        from safetensors.torch import load_file

        for name in ("latents.safetensors", "index.csv"):
            if not (folder / name).is_file():
                raise FreezeAsGuardError(f"{folder / name} is missing; run `dvc repro encode`")
        tensors = load_file(folder / "latents.safetensors")
        index = pd.read_csv(folder / "index.csv", keep_default_na=False)
        if len(index) != len(tensors["latents"]):
            raise FreezeAsGuardError(
                f"{folder} has {len(index)} index rows for {len(tensors['latents'])} latents; run `dvc repro -f encode`"
            )
        return cls(index, tensors["latents"], tensors["text"], tensors["empty_text"])
