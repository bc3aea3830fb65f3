"""Protect a model: what a method is given, and the one way in which its outcome is written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freezeasguard.arms import Arm
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_json
from freezeasguard.settings.resolve import ProtectSettings

if TYPE_CHECKING:
    from torch import Tensor

    from freezeasguard.checkpoints import Checkpoint
    from freezeasguard.costs import Meter
    from freezeasguard.models.latents import CaseData


@dataclass(frozen=True)
class Inputs:
    """What any method may look at, so that the stage `protect` knows none of them by name.

    Folders are read when a method asks for them: a blind one never opens the latents.
    """

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

    def whole_tensors(self) -> None:
        """Refuse an arm of rows or weights, for methods that know neither."""
        if self.arm.granularity != "tensor":
            raise FreezeAsGuardError(
                f"arm {self.arm.name!r}: {self.arm.method} chooses whole tensors, not granularity "
                f"{self.arm.granularity!r}; leave -{self.arm.granularity} out"
            )

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The published UNet's tensors by name, without loading diffusers."""
        from freezeasguard.models.diffusion import stored_tensors

        return stored_tensors(self.model)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that training for this arm depends on, but for theta_ft and a seed of its own: see `checkpoint`."""
        import torch

        from freezeasguard.checkpoints import digest
        from freezeasguard.models.diffusion import NoiseSchedule, load_scheduler, model_hash

        schedule = NoiseSchedule.of(load_scheduler(self.model))
        when = dict.fromkeys(("mask", "imma", "own"), {"checkpoint_minutes"})
        return {
            "settings": self.settings.model_dump(mode="json", exclude=when),  # pyright: ignore[reportArgumentType]
            "code": self.settings.code,
            "model": model_hash(self.tensors),
            "schedule": [schedule.prediction_type, digest(schedule.alphas_cumprod)],
            "data": [digest(self.data.latents), digest(self.data.text), self.data.index.to_csv()],
            "device": self.device.partition(":")[0],
            "torch": str(torch.__version__),  # a plain string: a checkpoint holds no other classes
        }

    def checkpoint(self, name: str, **more: Any) -> Checkpoint:
        """Where a run of this arm leaves its state; `more` is what it depends on beside `identity`."""
        from freezeasguard.checkpoints import CHECKPOINTS, Checkpoint

        path = CHECKPOINTS / f"protect-{self.latents.name}-{self.arm.name}-{name}.pt"
        return Checkpoint(path, {**self.identity, "name": name, **more})

    @cached_property
    def meter(self) -> Meter:
        """Of the steps of a method that trains: `with inputs.meter.step(): ...`."""
        from freezeasguard.costs import Meter

        return Meter(self.device)

    @cached_property
    def data(self) -> CaseData:
        from freezeasguard.models.latents import CaseData

        return CaseData.load(self.latents)


def protect_case(inputs: Inputs, out: Path, costs: Path | None = None) -> None:
    """Fill the protected-model folder `out` by the arm's method (see `models.protected`), and say what it took."""
    from freezeasguard.models.protected import write_for
    from freezeasguard.workers import one_thread

    one_thread(inputs.device)
    method = import_module(inputs.arm.kind.import_path)
    write_for(inputs.tensors, out, method.protect(inputs))
    if costs:  # of a method that trains: another has no meter
        write_json(costs, {"protect": inputs.meter.record()} if "meter" in vars(inputs) else {})
