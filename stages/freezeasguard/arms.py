"""An arm: a protection with its freeze ratio. The one place where its name is written, read, labelled and coloured."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.protections.registry import Method, method_of

GRANULARITIES = ("tensor", "row", "element")
"""What a mask decides on: a tensor (the paper), a row (an output channel), or a single weight."""
PRETRAINED = "pretrained"
"""The name of the unprotected model before any fine-tuning."""
NAME = re.compile(
    r"(?P<method>[a-z_]+)(-(?P<granularity>row|element))?(-(?P<percent>\d{1,3}))?(-draw(?P<draw>\d{1,3}))?"
)


@dataclass(frozen=True)
class Arm:
    """`freezeasguard`, `random-70`, `freezeasguard-row`, `random-element-50-draw2`, `uce-before`, `pretrained`."""

    method: str
    granularity: str = "tensor"
    percent: int | None = None
    """Its own freeze ratio; None: the headline rho."""
    draw: int = 0
    """Which of several random masks."""
    before: bool = False
    """The protected model as published, before any fine-tuning."""

    @classmethod
    def parse(cls, name: str) -> Arm:
        """Raises FreezeAsGuardError for a name that no arm has."""
        if name == PRETRAINED:
            return cls("full", before=True)
        before = name.endswith("-before")
        found = NAME.fullmatch(name.removesuffix("-before"))
        if not found:
            raise FreezeAsGuardError(
                f"{name!r} is no arm; write METHOD, and after it -row or -element, -PERCENT, -drawN or -before"
            )
        percent = found["percent"]
        arm = cls(
            found["method"],
            found["granularity"] or "tensor",
            None if percent is None else int(percent),
            int(found["draw"] or 0),
            before,
        )
        arm._check(name)
        return arm

    def _check(self, name: str) -> None:
        kind = self.kind
        if self.percent is not None and self.percent > 100:
            raise FreezeAsGuardError(f"arm {name!r} freezes {self.percent}%; a percent lies in 0..100")
        if not kind.freezes and (self.percent is not None or self.granularity != "tensor"):
            raise FreezeAsGuardError(
                f"arm {name!r}: {self.method} freezes nothing by ratio, so it has no percent and no kind"
            )
        if self.draw and not self.method.startswith("random"):
            raise FreezeAsGuardError(f"arm {name!r}: only random masks are drawn several times")
        if self.name != name:
            raise FreezeAsGuardError(f"{name!r} is no arm; did you mean {self.name!r}?")

    @property
    def kind(self) -> Method:
        return method_of(self.method)

    @property
    def name(self) -> str:
        if self == Arm("full", before=True):
            return PRETRAINED
        parts = [self.method]
        if self.granularity != "tensor":
            parts.append(self.granularity)
        if self.percent is not None:
            parts.append(str(self.percent))
        if self.draw:
            parts.append(f"draw{self.draw}")
        return "-".join([*parts, "before"] if self.before else parts)

    @property
    def protected(self) -> Arm:
        """The arm whose protected model this one's users start from."""
        return replace(self, before=False)

    @property
    def headline(self) -> bool:
        """Whether metrics name it: one of the paper's arms at the headline rho, by the experiment's own preset."""
        plain = self.granularity == "tensor" and self.percent is None and not self.draw and not self.kind.preset
        return plain and not self.before and not self.kind.control

    def rho(self, headline: float) -> float:
        """The freeze ratio: its own percent, else the headline's; 0 where nothing freezes."""
        if not self.kind.freezes:
            return 0.0
        return headline if self.percent is None else self.percent / 100

    def label(self, headline: float) -> str:
        """As tables and figures print it."""
        if self.name == PRETRAINED:
            return "Pre-trained model"
        kind = {"tensor": "", "row": " of rows", "element": " of weights"}[self.granularity]
        text = self.kind.label.format(share=f"{100 * self.rho(headline):g}%{kind}")
        text += f", draw {self.draw}" if self.draw else ""
        return f"{text} before fine-tuning" if self.before else text

    @property
    def color(self) -> str:
        return "#8c8c8c" if self.before else self.kind.color

    @property
    def linestyle(self) -> str:
        """Dashed where the arm has a ratio of its own."""
        return "-" if self.percent is None else "--"

    @property
    def paper_method(self) -> str:
        """The method of `paper_values.csv` beside it; "" where the paper has none."""
        if self.name == PRETRAINED:
            return PRETRAINED
        return "" if self.before or self.granularity != "tensor" else self.kind.paper

    @property
    def random_twin(self) -> Arm:
        """The blind arm of the same size that a mask must beat."""
        return replace(self, method="random_parameters" if self.method.endswith("_parameters") else "random")
