"""What every block of params.yaml is made of. A block *is* what the library takes: no second copy of its fields.

Every number is finite and within what a run can mean: a learning rate of 1e300 or a seed of 2**64 is refused here, and
not hours later. Every text that reaches a command or a path follows the rule of `names`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic takes true for 1
        raise ValueError("must be a number")
    return value


_Int = Annotated[int, BeforeValidator(_no_bool)]
_Float = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]

Count = Annotated[_Int, Field(ge=0, le=10**6)]
Positive = Annotated[_Int, Field(gt=0, le=10**6)]
Several = Annotated[_Int, Field(ge=2, le=10**6)]
Pixels = Annotated[_Int, Field(gt=0, le=2**14)]
"""A side of an image."""
Bytes = Annotated[_Int, Field(gt=0, le=2**50)]
PositiveFloat = Annotated[_Float, Field(ge=1e-12, le=1e9)]
NotNegative = Annotated[_Float, Field(ge=0, le=1e9)]
Rate = Annotated[_Float, Field(ge=1e-12, le=100)]
"""A learning rate of network weights."""
Temperature = Annotated[_Float, Field(ge=1e-3, le=1e3)]
Guidance = Annotated[_Float, Field(ge=1, le=100)]
Ratio = Annotated[_Float, Field(ge=0, le=1)]
Seed = Annotated[_Int, Field(ge=0, lt=2**63)]
Workers = Annotated[_Int, Field(ge=1, le=256)]
Device = Literal["auto", "cpu", "cuda"]


class Block(BaseModel):
    """Frozen; a key that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class MachineBlock(Block):
    """The keys of params.yaml that say of the machine: every stage reads them there, whatever else it holds."""

    workers: Workers
    device: Device = "auto"
