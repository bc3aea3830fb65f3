"""What every block of params.yaml is made of. A block *is* what the library takes: no second copy of its fields."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0)]


class Block(BaseModel):
    """Frozen; a key that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)
