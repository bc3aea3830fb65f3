"""The study's tables: what every kind of mask keeps of full fine-tuning, and whether its gap is real.

*Kept* is the share of what full fine-tuning changes that is left under the mask, 1 for full fine-tuning and 0 for
the pretrained model: of the fall of the denoising loss on the adaptation images, or of the change of the case's
score. A mask for one role assignment keeps `illegal` on the data whose side is illegal there, `legal` on the
other; both are averaged over the two assignments, so that neither class's difficulty counts. Its *gap* is
legal - illegal. A blind mask's gap is zero by construction, so a gap above zero is one over random's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freezeasguard.files import folder_atomically, read_json
from freezeasguard.models.granularity import GRANULARITIES
from freezeasguard.reports.drawing import matplotlib_pyplot, save_figure
from freezeasguard.reports.tables import side_score, write_table
from freezeasguard.scores.registry import SCORES
from freezeasguard.scores.scoring import LEAST_FALL, kept_share
from freezeasguard.settings.params import Params
from freezeasguard.sides import SIDES
from freezeasguard.study import ROLES, data_side

ORDER = ("freezeasguard", "one_shot", "other_case", "zeroed_signal", "random", "random-parameters")
MEASURES = ("loss", "score")
LEAST_SCORE_CHANGE = 0.05
"""As LEAST_FALL of a loss, for scores: they rest on a few generated images a side, so that less is noise."""


@dataclass(frozen=True)
class Kind:
    """One kind of mask: what the draws and the roles of a study are averaged over."""

    name: str
    granularity: str
    rho: float
    illegal_weight: float | None
    setting: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Kind:
        name = re.sub(r"^random-\d+$", "random", row["name"])
        return cls(name, row["granularity"], row["rho"], row["illegal_weight"], row["setting"])


@dataclass(frozen=True)
class Kept:
    """What one study says of a kind of mask."""

    kind: Kind
    kept: Mapping[tuple[str, str], float]
    """(measure, side in its role) -> share kept."""
    share_of_parameters: float
    mask_bytes: float

    def gap(self, measure: str) -> float:
        return self.kept[measure, "legal"] - self.kept[measure, "illegal"]


def measured(study: Mapping[str, Any], row: Mapping[str, Any], measure: str) -> float:
    if measure == "loss":
        return row["fixed_noise_loss"]
    return row["scores"][side_score(study["scores"], row["data_side"])]


def kept_of(study: Mapping[str, Any], row: Mapping[str, Any], measure: str) -> float:
    """The share that a row keeps on its side of the data; nan where full fine-tuning hardly changes the measure."""
    ends = {
        one["name"]: measured(study, one, measure)
        for one in study["rows"]
        if one["name"] in ("pretrained", "full") and one["data_side"] == row["data_side"]
    }
    values = ends["pretrained"], ends["full"], measured(study, row, measure)
    if measure == "loss":
        kept = kept_share(*values)
    else:
        # Where a score rises with quality, its negative is what falls.
        sign = 1 if SCORES[side_score(study["scores"], row["data_side"])].lower_is_better else -1
        kept = kept_share(*(sign * value for value in values), least_fall=LEAST_SCORE_CHANGE)
    return math.nan if kept is None else kept


def kept_by_kind(study: Mapping[str, Any]) -> list[Kept]:
    """Per kind of mask, kept in each role, averaged over both role assignments and over draws.

    A mask that knows no roles plays both: each side's value is illegal once and legal once. A swept baseline was
    made for the roles as given alone.
    """
    groups: dict[Kind, list[Mapping[str, Any]]] = {}
    for row in study["rows"]:
        groups.setdefault(Kind.of(row), []).append(row)
    found = []
    for kind, rows in groups.items():
        kept: dict[tuple[str, str], float] = {}
        for measure in MEASURES:
            for side in SIDES:
                by_role = []
                for role in ROLES[:1] if kind.setting else ROLES:
                    mine = [r for r in rows if r["role"] in (None, role) and r["data_side"] == data_side(side, role)]
                    by_role.append(np.mean([kept_of(study, row, measure) for row in mine]))
                kept[measure, side] = float(np.mean(by_role))
        shares, sizes = ([row[key] for row in rows] for key in ("share_of_parameters_frozen", "mask_bytes"))
        found.append(Kept(kind, kept, float(np.mean(shares)), float(np.mean(sizes))))
    return found


def grouped_by_kind(studies: Sequence[Mapping[str, Any]]) -> dict[Kind, list[Kept]]:
    """What each study says of a kind of mask, kinds in the order of their first row."""
    groups: dict[Kind, list[Kept]] = {}
    for kept in (kept for study in studies for kept in kept_by_kind(study)):
        groups.setdefault(kept.kind, []).append(kept)
    return groups


def mean_kept(ones: Sequence[Kept], measure: str) -> tuple[float, float]:
    """The shares that the illegal and the legal side keep, means over studies."""
    illegal, legal = (float(np.mean([one.kept[measure, side] for one in ones])) for side in SIDES)
    return illegal, legal


def student_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean with Student's interval over independent repetitions; infinite for fewer than two."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, -math.inf, math.inf
    reach = float(t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - reach, mean + reach


def _headline(kind: Kind, rho: float) -> bool:
    return not kind.setting and kind.rho == rho and kind.illegal_weight in (None, 0.5)


def share_text(share: float, spec: str = ".2f") -> str:
    return "-" if math.isnan(share) else f"{share:{spec}}"


def study_table(studies: Sequence[Mapping[str, Any]], rho: float) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one domain: a row a kind of mask at the headline rho and even weights."""
    groups = {kind: ones for kind, ones in grouped_by_kind(studies).items() if _headline(kind, rho)}

    def place(kind: Kind) -> tuple[int, str, int]:
        known = ORDER.index(kind.name) if kind.name in ORDER else len(ORDER)
        return known, kind.name, GRANULARITIES.index(kind.granularity)

    header = ["Mask", "Of", "Parameters frozen", "Mask file", "Seeds"]
    for measure in MEASURES:
        header += [f"Kept {measure}, illegal", f"legal ({measure})", f"Gap ({measure}) [95%]"]
    rows = []
    for kind in sorted(groups, key=place):
        ones = groups[kind]
        frozen = f"{100 * np.mean([k.share_of_parameters for k in ones]):.0f}%"
        size = f"{np.mean([k.mask_bytes for k in ones]) / 1024:.0f} kB"
        row = [kind.name, f"{kind.granularity}s", frozen, size, str(len(ones))]
        for measure in MEASURES:
            gap, low, high = student_interval([k.gap(measure) for k in ones])
            row += [share_text(mean) for mean in mean_kept(ones, measure)]
            row.append(share_text(gap, "+.3f") + (f" [{low:+.3f}, {high:+.3f}]" if math.isfinite(low) else ""))
        rows.append(row)
    return header, rows


def baseline_rows(studies: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The sweep of the baselines' settings, with the roles as the case has them."""
    header = ["Case", "Baseline", "Setting", "Kept loss, illegal", "legal (loss)"]
    header += ["Kept score, illegal", "legal (score)"]
    rows = [
        [study["study"]["case"], kept.kind.name.upper(), kept.kind.setting]
        + [share_text(kept.kept[measure, side]) for measure in MEASURES for side in SIDES]
        for study in studies
        for kept in kept_by_kind(study)
        if kept.kind.setting
    ]
    return header, rows


def curve_rows(studies: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The points of `curve_figure`: the learned masks at every ratio and weight, means over the studies."""
    header = ["Of", "rho", "Illegal weight"]
    header += [f"{side} ({measure})" for measure in MEASURES for side in ("Kept illegal", "legal", "gap")]
    groups = {kind: ones for kind, ones in grouped_by_kind(studies).items() if kind.name == "freezeasguard"}
    rows = []
    for kind in sorted(groups, key=lambda k: (GRANULARITIES.index(k.granularity), k.rho, k.illegal_weight)):
        row = [f"{kind.granularity}s", f"{kind.rho:g}", f"{kind.illegal_weight:g}"]
        for measure in MEASURES:
            illegal, legal = mean_kept(groups[kind], measure)
            row += [share_text(illegal), share_text(legal), share_text(legal - illegal, "+.2f")]
        rows.append(row)
    return header, rows


def curve_figure(studies: Sequence[Mapping[str, Any]], rho: float, path: Path) -> Path:
    """Kept on the legal side over kept on the illegal side: above the diagonal is a real gap."""
    plt = matplotlib_pyplot()
    figure, axis = plt.subplots(figsize=(5.2, 4.6))
    points = {kind: mean_kept(ones, "loss") for kind, ones in grouped_by_kind(studies).items()}
    for granularity, color in {"tensor": "#0072b2", "row": "#d55e00", "element": "#009e73"}.items():
        learned = [k for k in points if k.name == "freezeasguard" and k.granularity == granularity]
        lines = {
            "o-": ("rho", [k for k in learned if k.illegal_weight == 0.5]),
            "s:": ("the illegal weight", [k for k in learned if k.rho == rho]),
        }
        for style, (what, kinds) in lines.items():
            if len(kinds) > (style == "s:"):
                illegal, legal = zip(*sorted(points[kind] for kind in kinds), strict=True)
                label = f"{granularity}s" + (f", over {what}" if len(kinds) > 1 else "")
                axis.plot(illegal, legal, style, color=color, label=label, markersize=4)
    blind = [point for kind, point in points.items() if kind.name == "random"]
    axis.plot([p[0] for p in blind], [p[1] for p in blind], "x", color="#8c8c8c", label="random")
    axis.axline((1, 1), slope=1, color="#8c8c8c", linewidth=0.8)
    axis.set_xlabel("loss kept, illegal side")
    axis.set_ylabel("loss kept, legal side")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=7, frameon=False)
    saved = save_figure(figure, path)
    plt.close(figure)
    return saved


def _notes(studies: Sequence[Mapping[str, Any]], rho: float) -> list[str]:
    names, users, n_images = studies[0]["scores"], studies[0]["adapt"], studies[0]["rows"][0]["n_images"]
    used = " and ".join(sorted({SCORES[side_score(names, side)].label for side in SIDES}))
    classes = [
        f"seed {s['study']['seed']}: {' against '.join(', '.join(s['classes'][side]) for side in SIDES)}"
        for s in studies
    ]
    return [
        f"Kept: 1 is what full fine-tuning changes, 0 the pretrained model; of the denoising loss, and of {used}.",
        "Averaged over both role assignments; a blind mask's gap is zero by construction. Interval: Student's, over "
        "seeds.",
        f"-: in one seed at least, full fine-tuning lowers the loss by less than {LEAST_FALL:.0%} of the pretrained "
        f"model's, or betters the score ({n_images} images a side) by less than {LEAST_SCORE_CHANGE:.0%}.",
        f"rho {rho:g}; users train {users['steps']} steps of {users['batch_size']} images after protection.",
        f"Classes: {'; '.join(classes)}.",
        "Rows and single weights save no compute: backprop and the optimiser run over whole tensors.",
    ]


def write_study_report(params: Params, table: str, reports: Path) -> list[Path]:
    """reports/study/tables/TABLE/: the masks' table with its curves, or the sweep of the baselines, or both."""
    studies = [
        read_json(reports / "study" / "results" / f"{name}.json", f"run `dvc repro study@{name}`")
        for name in params.study_tables[table]
    ]
    written = []
    with folder_atomically(reports / "study" / "tables" / table) as out:
        if with_masks := [study for study in studies if study["study"]["masks"]]:
            header, rows = study_table(with_masks, params.rho)
            notes = _notes(with_masks, params.rho)
            written.append(write_table(out / "masks", f"Study of masks: {table}", header, rows, notes))
            curve_figure(with_masks, params.rho, out / "curves.png")
            header, rows = curve_rows(with_masks)
            if len(rows) > len(GRANULARITIES):
                title = f"Learned masks over rho and the illegal weight: {table}"
                written.append(write_table(out / "curves", title, header, rows, notes[:3]))
        header, rows = baseline_rows(studies)
        if rows:
            notes = [
                "Kept as in the study of masks; the roles as the case has them, one seed. A good baseline keeps little "
                "on the illegal side and much on the legal one; below 0 the model ends worse than the pretrained one.",
                f"The arms: UCE at {params.uce.setting()}; IMMA at {params.imma.setting()}.",
            ]
            written.append(write_table(out / "baselines", "Settings of the baselines", header, rows, notes))
    return [reports / "study" / "tables" / table / path.name for path in written]
