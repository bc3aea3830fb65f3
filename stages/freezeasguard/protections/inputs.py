"""What a method is given: one object for all, so that the stage `protect` knows no method by name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from freezeasguard.arms import Arm
from freezeasguard.settings.resolve import ProtectSettings

if TYPE_CHECKING:
    from torch import Tensor

    from freezeasguard.models.latents import CaseData


@dataclass(frozen=True)
class Inputs:
    """Folders are read when a method asks for them: a blind one never opens the latents."""

    settings: ProtectSettings
    model: Path
    """diffusers folder of the published model."""
    latents: Path
    finetuned: Path
    """theta_ft, as `relearn` wrote it."""
    device: str = "cpu"
    workers: int = 1
    """Processes side by side on a CPU; results do not depend on it."""

    @property
    def arm(self) -> Arm:
        return Arm.parse(self.settings.arm)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The published UNet's tensors by name, without loading diffusers."""
        from freezeasguard.models.diffusion import stored_tensors

        return stored_tensors(self.model)

    @cached_property
    def data(self) -> CaseData:
        from freezeasguard.models.latents import CaseData

        return CaseData.load(self.latents)
