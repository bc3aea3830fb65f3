"""Cached latents and text embeddings of a case: what every trainer and every mask learner reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.reading import read_table, read_tensors

if TYPE_CHECKING:  # tables and surveys read the names of the sides, and start faster without torch
    import pandas as pd
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

    def select(self, side: str, parts: Sequence[str], class_name: str | None = None) -> LatentSet:
        """The images of a side, or those of one of its classes."""
        import torch

        found = self.rows(side, parts)
        rows = torch.tensor((found if class_name is None else found[found["class"] == class_name]).index.to_numpy())
        return LatentSet(self.latents[rows], self.text[rows])

    def rows(self, side: str, parts: Sequence[str]) -> pd.DataFrame:
        return self.index.loc[(self.index["side"] == side) & self.index["part"].isin(parts)]

    def classes(self, side: str, parts: Sequence[str]) -> list[str]:
        return sorted(set(self.rows(side, parts)["class"]))

    @classmethod
    def load(cls, folder: Path) -> CaseData:
        remedy = f"run `dvc repro -f encode@{folder.name}`"
        path = folder / "latents.safetensors"
        tensors = read_tensors(path, remedy, ("latents", "text", "empty_text"))
        text = ("side", "class", "subject", "part", "path", "caption")
        index = read_table(folder / "index.csv", remedy, text, numbers=("row",))
        for name, n_axes in {"latents": 5, "text": 3, "empty_text": 2}.items():
            tensor = tensors[name]
            if tensor.ndim != n_axes or not tensor.is_floating_point() or not tensor.isfinite().all():
                raise FreezeAsGuardError(f"{path}: {name} is no finite tensor of {n_axes} axes; {remedy}")
            if n_axes > 2 and len(tensor) != len(index):
                raise FreezeAsGuardError(f"{folder} has {len(index)} index rows for {len(tensor)} {name}; {remedy}")
        if index["row"].tolist() != list(range(len(index))):
            raise FreezeAsGuardError(f"{folder / 'index.csv'}: its rows are not in the order of the latents; {remedy}")
        return cls(index, tensors["latents"], tensors["text"], tensors["empty_text"])
