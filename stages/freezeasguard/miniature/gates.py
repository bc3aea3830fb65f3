"""Quality gates of the miniature model: what must hold before its numbers mean anything.

They are measured by `measure_gates`, in groups, and kept in the model's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from freezeasguard.files import write_json
from freezeasguard.reading import read_json

MODEL = Path("data/models/tiny-1.5")
SCORERS = Path("data/models/scorers")


@dataclass(frozen=True)
class Gate:
    name: str
    value: float
    bound: float | None
    """None: the value is reported and not judged."""
    at_least: bool
    """True: value >= bound passes; False: value <= bound."""
    meaning: str

    @property
    def passed(self) -> bool | None:
        """None where there is no bound."""
        if self.bound is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def merge_gates(kept: Sequence[Gate], measured: Sequence[Gate]) -> list[Gate]:
    """`kept` with the rows that were measured again in their places, and new rows after them."""
    fresh = {gate.name: gate for gate in measured}
    return [fresh.pop(gate.name, gate) for gate in kept] + list(fresh.values())


def gates_to_json(gates: Sequence[Gate]) -> list[dict[str, Any]]:
    return [{**asdict(gate), "passed": gate.passed} for gate in gates]


def write_gates(gates: Sequence[Gate], model: Path = MODEL) -> None:
    write_json(model / "gates.json", gates_to_json(gates))


def read_gates(model: Path = MODEL) -> list[Gate]:
    rows = read_json(model / "gates.json", "run `dvc repro -f pretrain`", list)
    return [Gate(**{k: v for k, v in row.items() if k != "passed"}) for row in rows]


def format_gates(gates: Sequence[Gate]) -> str:
    """A line a gate: verdict, name, value, bound, meaning."""
    verdicts = {True: "pass", False: "FAIL", None: ""}
    lines = []
    for g in gates:
        bound = "" if g.bound is None else f"{'>=' if g.at_least else '<='} {g.bound:.3f}"
        lines.append(f"{verdicts[g.passed]:<4}  {g.name:<22} {g.value:7.3f} {bound:<8}  {g.meaning}")
    return "\n".join(lines)
