"""The study's tables: what every kind of mask keeps of full fine-tuning, and whether its gap is real.

*Kept* is the share of what full fine-tuning changes that is left under the mask, 1 for full fine-tuning and 0 for
the pretrained model: of the fall of the denoising loss on the adaptation images, or of the change of the side's
score. One class may simply be harder to learn than the other: with the roles swapped, the two sides of a case change
places, and what is kept is averaged over both assignments. The *gap* is legal - illegal. A blind mask's is zero but
for the chance of its draw and of its users' training, so a gap above zero is one over random's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from freezeasguard.arms import GRANULARITIES, Arm
from freezeasguard.files import folder_atomically
from freezeasguard.protections.registry import METHODS
from freezeasguard.reports.collect import APART, Row, read_cells
from freezeasguard.reports.measures import LEAST_SCORE_CHANGE
from freezeasguard.reports.rendering import write_table
from freezeasguard.scores.kept import LEAST_FALL
from freezeasguard.scores.registry import SCORES
from freezeasguard.sides import ROLES, SIDES

MEASURES = ("loss", "score")


@dataclass(frozen=True)
class Kind:
    """One kind of mask: what draws, roles and seeds are averaged over."""

    arm: Arm
    """Without a draw, and without a ratio of its own: that is `rho`."""
    rho: float
    preset: str = ""
    illegal_weight: float | None = None
    """These two where the arm's mask is made with them."""
    settings: str = ""
    apart: str = ""
    """What sets its settings apart from those of the arm's others, in words; empty where there are no others."""

    @classmethod
    def of(cls, row: Row) -> Kind:
        arm = replace(Arm.parse(row["arm"]), percent=None, draw=0, before=False)
        made = arm.kind.block == "mask"
        weight = float(row["illegal_weight"]) if made and row["illegal_weight"] else None
        preset = row["preset"] if made else ""
        return cls(arm, float(row["arm_rho"]), preset, weight, row["settings"], row.get(APART, ""))

    @property
    def place(self) -> tuple[object, ...]:
        weight = -1.0 if self.illegal_weight is None else self.illegal_weight
        methods, granularity = list(METHODS), GRANULARITIES.index(self.arm.granularity)
        words = [(word.rpartition(" ")[0], _number(word.rpartition(" ")[2])) for word in self.apart.split(", ")]
        return methods.index(self.arm.method), granularity, self.preset, self.rho, weight, words, self.settings


def _number(text: str) -> tuple[float, str]:
    """Sorts numbers as numbers, before words."""
    try:
        return float(text), ""
    except ValueError:
        return math.inf, text


@dataclass(frozen=True)
class Kept:
    """What one repetition says of a kind of mask."""

    kept: dict[tuple[str, str], float]
    """(measure, side in its role) -> share kept, averaged over the role assignments; nan where it is not known."""

    def gap(self, measure: str) -> float:
        return self.kept[measure, "legal"] - self.kept[measure, "illegal"]


def student_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean with Student's interval over independent repetitions; infinite for fewer than two."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, -math.inf, math.inf
    reach = float(t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - reach, mean + reach


def kept_in(rows: Sequence[Row], roles: Sequence[str]) -> Kept:
    """What one kind keeps in one repetition: draws are averaged within a role assignment, then the assignments."""
    kept = {}
    for measure in MEASURES:
        for side in SIDES:
            by_role = []
            for role in roles:
                mine = [row[f"kept_{measure}"] for row in rows if (row["roles"], row["side"]) == (role, side)]
                # one value that is not known, or a missing assignment, leaves the average unknown
                by_role.append(np.mean([float(value) if value else math.nan for value in mine]) if mine else math.nan)
            kept[measure, side] = float(np.mean(by_role))
    return Kept(kept)


def compared_roles(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """The role assignments to average over, and the seeds that have them all.

    Both, and the seeds run in both; where no seed was run in both, the one that most seeds have.
    """
    seeds: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        seeds[row["roles"]].add(row["seed"])
    both = set.intersection(*(seeds[role] for role in ROLES))
    roles: list[str] = [*ROLES] if both else [max(ROLES, key=lambda role: len(seeds[role]))]
    return roles, sorted(both or seeds[roles[0]], key=int)


def kept_by_seed(rows: Sequence[Row], *, before: bool = False) -> dict[Kind, dict[str, Kept]]:
    """Per kind, what each repetition (seed) says; a repetition without the kind in some role says nothing of it.

    Args:
        before: of what is published instead, before anybody trains; under the kind that users then train.
    """
    roles, seeds = compared_roles(rows)
    groups: dict[Kind, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        arm = Arm.parse(row["arm"])
        if row["seed"] in seeds and arm.before == before and arm.method != "full":
            groups[Kind.of(row)][row["seed"]].append(row)
    found = {}
    for kind in sorted(groups, key=lambda kind: kind.place):
        whole = {seed: mine for seed, mine in groups[kind].items() if set(roles) <= {row["roles"] for row in mine}}
        if whole:
            found[kind] = {seed: kept_in(mine, roles) for seed, mine in whole.items()}
    return found


def kept_by_kind(rows: Sequence[Row]) -> dict[Kind, list[Kept]]:
    """As `kept_by_seed`, without the seeds."""
    return {kind: list(ones.values()) for kind, ones in kept_by_seed(rows).items()}


def labels(kinds: Collection[Kind]) -> dict[Kind, str]:
    """What each is called: its arm's label, and where others share it, what sets it apart from them."""
    sharing: dict[str, list[Kind]] = defaultdict(list)
    for kind in kinds:
        sharing[kind.arm.label(kind.rho)].append(kind)
    found = {}
    for label, ones in sharing.items():
        several = {name: len({getattr(one, name) for one in ones}) > 1 for name in ("preset", "illegal_weight")}
        by_settings = len({one.settings for one in ones}) > 1
        for one in ones:
            words = [f"preset {one.preset}"] if several["preset"] else []
            words += [f"illegal weight {one.illegal_weight or 0:g}"] if several["illegal_weight"] else []
            words += [one.apart or one.settings] if by_settings else []
            found[one] = ", ".join([label, *words])
    return found


def share_text(share: float, spec: str = ".2f") -> str:
    return "-" if math.isnan(share) else f"{share:{spec}}"


def _mean(rows: Sequence[Row], column: str) -> float:
    values = [float(row[column]) for row in rows if row[column]]
    return float(np.mean(values)) if values else math.nan


def study_rows(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one case: a row a kind of mask; its ratios and illegal weights stand below each other."""
    _, seeds = compared_roles(rows)
    rows = [row for row in rows if row["seed"] in seeds and not Arm.parse(row["arm"]).before]
    kinds = kept_by_kind(rows)
    several_presets = len({kind.preset for kind in kinds if kind.preset}) > 1
    several_weights = len({kind.illegal_weight for kind in kinds if kind.illegal_weight is not None}) > 1
    several_settings = len({replace(kind, settings="", apart="") for kind in kinds}) < len(kinds)
    header = ["Mask", "Illegal weight"] if several_weights else ["Mask"]
    header += [*(["Preset"] if several_presets else []), *(["Settings"] if several_settings else [])]
    header += ["Parameters frozen", "Mask file", "n"]
    for measure in MEASURES:
        header += [f"Kept {measure}, illegal", f"legal ({measure})", f"Gap ({measure}) [95%]"]
    lines = []
    for kind, ones in kinds.items():
        mine = [row for row in rows if Kind.of(row) == kind]
        line = [kind.arm.label(kind.rho)]
        if several_weights:
            line.append("-" if kind.illegal_weight is None else f"{kind.illegal_weight:g}")
        if several_presets:
            line.append(kind.preset or "-")
        if several_settings:
            line.append(kind.apart or kind.settings)
        frozen, size = 100 * _mean(mine, "share_of_parameters_frozen"), _mean(mine, "mask_bytes") / 1024
        line += ["-" if math.isnan(value) else f"{value:.0f}{unit}" for value, unit in ((frozen, "%"), (size, " kB"))]
        line.append(str(len(ones)))
        for measure in MEASURES:
            gap, low, high = student_interval([one.gap(measure) for one in ones])
            line += [share_text(float(np.mean([one.kept[measure, side] for one in ones]))) for side in SIDES]
            line.append(share_text(gap, "+.3f") + (f" [{low:+.3f}, {high:+.3f}]" if math.isfinite(low) else ""))
        lines.append(line)
    return header, lines


def _notes(rows: Sequence[Row]) -> list[str]:
    roles, seeds = compared_roles(rows)
    used = " and ".join(sorted({SCORES[row["score_name"]].label for row in rows}))
    dealt = {(row["seed"], row["side"]): row["classes"] for row in rows if row["roles"] == roles[0]}
    classes = [f"seed {seed}: {' against '.join(dealt[seed, side] for side in SIDES)}" for seed in seeds]
    n_images = sorted({int(row["n"]) for row in rows})
    averaged = (
        "Averaged over both role assignments; a blind mask's gap is zero but for chance."
        if len(roles) == 2
        else f"Roles {roles[0]} alone: a gap may be that one side's classes are harder to learn."
    )
    left_out = sorted({row["seed"] for row in rows} - set(seeds), key=int)
    return [
        f"Kept: 1 is what full fine-tuning changes, 0 the pretrained model; of the denoising loss, and of {used}.",
        f"{averaged} n: seeds, each a repetition. Interval: Student's, over seeds.",
        f"-: in one of them at least, full fine-tuning lowers the loss by less than {LEAST_FALL:.0%} of the pretrained "
        f"model's, or betters the score ({' or '.join(map(str, n_images))} images a side) by less than "
        f"{LEAST_SCORE_CHANGE:.0%}.",
        f"Classes, roles {roles[0]}: {'; '.join(classes)}.",
        *([f"Left out, run in one role assignment alone: seed {', '.join(left_out)}."] if left_out else []),
        "Rows and single weights save no compute: backprop and the optimiser run over whole tensors.",
    ]


def write_study_tables(cells: Path) -> list[Path]:
    """`tables/PROFILE-CASE` beside the collected cells, as .md, .csv and .tex; returns the Markdown files."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in read_cells(cells.read_text(), str(cells)):
        groups[row["profile"], row["case"]].append(row)
    out, written = cells.parent / "tables", []
    with folder_atomically(out) as temporary:
        for (profile, case), rows in groups.items():
            header, lines = study_rows(rows)
            title = f"Study: {case}, profile {profile}"
            written.append(write_table(temporary / f"{profile}-{case}", title, header, lines, _notes(rows)))
    return [out / path.name for path in written]
