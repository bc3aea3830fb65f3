"""The study's tables: what every kind of mask keeps of full fine-tuning, and whether its gap is real.

*Kept* is the share of what full fine-tuning changes that is left under the mask, 1 for full fine-tuning and 0 for
the pretrained model: of the fall of the denoising loss on the adaptation images, or of the change of the case's
score. A mask for one role assignment keeps `illegal` on the data whose side is illegal there, `legal` on the
other; both are averaged over the two assignments, so that neither class's difficulty counts. Its *gap* is
legal - illegal. A blind mask's gap is zero by construction, so a gap above zero is one over random's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from freezeasguard.config import Params
from freezeasguard.data.latents import SIDES
from freezeasguard.drawing import matplotlib_pyplot, save_figure
from freezeasguard.files import read_json
from freezeasguard.scores import SCORES
from freezeasguard.study import ROLES, data_side
from freezeasguard.tables import VERDICTS, write_table

KEY = ["name", "granularity", "rho", "illegal_weight", "setting"]
ORDER = ["freezeasguard", "one-shot", "other-case", "zeroed-signal", "random", "random-parameters"]


def side_score(names: Sequence[str], side: str) -> str:
    """The score that speaks for a side of the case's data (see `tables.VERDICTS`)."""
    return dict(zip(SIDES, VERDICTS.get(names[0], (names[0], names[0])), strict=True))[side]


def kept_rows(study: Mapping[str, Any]) -> pd.DataFrame:
    """The study's rows with `kept_loss` and `kept_score`; draws of one random kind get one name."""
    table = pd.DataFrame(study["rows"])
    score = [
        scores[side_score(study["scores"], side)]
        for scores, side in zip(table["scores"], table["data_side"], strict=True)
    ]
    table = table.assign(score=score, illegal_weight=table["illegal_weight"].fillna(-1.0))
    ends = {
        side: {
            name: table[(table["name"] == name) & (table["data_side"] == side)].iloc[0]
            for name in ("pretrained", "full")
        }
        for side in SIDES
    }
    for column, kept in (("fixed_noise_loss", "kept_loss"), ("score", "kept_score")):
        table[kept] = [
            (ends[side]["pretrained"][column] - value) / (ends[side]["pretrained"][column] - ends[side]["full"][column])
            for value, side in zip(table[column], table["data_side"], strict=True)
        ]
    drawn = table["name"].str.match(r"random-\d+$")
    return table.assign(draw=table["name"], name=table["name"].mask(drawn, "random"))


def role_means(study: Mapping[str, Any]) -> pd.DataFrame:
    """Per kind of mask: kept on the illegal and on the legal side and their gap, averaged over both roles.

    A mask that knows no roles plays both: its two sides' values are each illegal once and legal once. A swept
    baseline was made for the roles as given alone.
    """
    table = kept_rows(study)
    rows = []
    for key, group in table.groupby(KEY, sort=False):
        row: dict[str, Any] = dict(zip(KEY, key, strict=True))
        row |= {
            "share_of_parameters": group["share_of_parameters_frozen"].mean(),
            "mask_bytes": group["mask_bytes"].max(),
        }
        for measure in ("loss", "score"):
            sides: dict[str, list[float]] = {side: [] for side in SIDES}
            for role in ROLES if not row["setting"] else ROLES[:1]:
                made_for = group[group["role"].isna() | (group["role"] == role)]
                for side in SIDES:
                    mine = made_for[made_for["data_side"] == data_side(side, role)]
                    sides[side].append(float(mine[f"kept_{measure}"].mean()))
            means = {side: float(np.mean(values)) for side, values in sides.items()}
            row |= {f"{side}_{measure}": value for side, value in means.items()}
            row[f"gap_{measure}"] = means["legal"] - means["illegal"]
        rows.append(row)
    return pd.DataFrame(rows)


def student_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean with Student's interval over independent repetitions; infinite for fewer than two."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, -math.inf, math.inf
    reach = float(t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - reach, mean + reach


def study_table(studies: Sequence[Mapping[str, Any]], rho: float) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one domain: a row a kind of mask at the headline rho and even weights."""
    means = pd.concat([role_means(study) for study in studies])
    chosen = means[(means["rho"] == rho) & means["illegal_weight"].isin([0.5, -1.0]) & (means["setting"] == "")]
    header = ["Mask", "Of", "Parameters frozen", "Mask file", "Seeds"]
    for measure in ("loss", "score"):
        header += [f"Kept {measure}, illegal", f"legal ({measure})", f"Gap ({measure}) [95%]"]
    groups = {key: group for key, group in chosen.groupby(["name", "granularity"], sort=False)}

    def place(key: Any) -> tuple[int, str, str]:
        return (ORDER.index(key[0]) if key[0] in ORDER else len(ORDER)), str(key[1]), str(key[0])

    rows = []
    for name, granularity in sorted(groups, key=place):
        group = groups[name, granularity]
        size = f"{group['mask_bytes'].max() / 1024:.0f} kB"
        row = [name, f"{granularity}s", f"{100 * group['share_of_parameters'].mean():.0f}%", size, str(len(group))]
        for measure in ("loss", "score"):
            gap, low, high = student_interval(group[f"gap_{measure}"].tolist())
            interval = f" [{low:+.2f}, {high:+.2f}]" if math.isfinite(low) else ""
            row += [f"{group[f'{side}_{measure}'].mean():.2f}" for side in SIDES]
            row.append(f"{gap:+.2f}{interval}")
        rows.append(row)
    return header, rows


def baseline_rows(studies: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The sweep of the baselines' settings, with the roles as the case has them."""
    header = [
        "Case",
        "Baseline",
        "Setting",
        "Kept loss, illegal",
        "legal (loss)",
        "Kept score, illegal",
        "legal (score)",
    ]
    rows = []
    for study in studies:
        means = role_means(study)
        for _, row in means[means["setting"] != ""].iterrows():
            values = [f"{row[f'{side}_{measure}']:.2f}" for measure in ("loss", "score") for side in SIDES]
            rows.append([study["study"]["case"], str(row["name"]).upper(), str(row["setting"]), *values])
    return header, rows


def curve_figure(studies: Mapping[str, Sequence[Mapping[str, Any]]], rho: float, path: Path) -> Path:
    """Kept on the legal side over kept on the illegal side, a panel a domain: above the diagonal is a real gap."""
    plt = matplotlib_pyplot()
    figure, axes = plt.subplots(1, len(studies), figsize=(4.2 * len(studies), 4), squeeze=False)
    colors = {"tensor": "#0072b2", "row": "#d55e00", "element": "#009e73"}
    for axis, (domain, ones) in zip(axes[0], studies.items(), strict=True):
        means = pd.concat([role_means(study) for study in ones])
        learned = means[means["name"] == "freezeasguard"]
        for granularity, color in colors.items():
            mine = learned[learned["granularity"] == granularity]
            points = mine.groupby(["rho", "illegal_weight"], as_index=False)[["illegal_loss", "legal_loss"]].mean()
            for what, same in (("rho", points["illegal_weight"] == 0.5), ("weight", points["rho"] == rho)):
                line = points[same].sort_values("illegal_loss")
                style = "-" if what == "rho" else ":"
                label = f"{granularity}s, over {'rho' if what == 'rho' else 'the illegal weight'}"
                if len(line) > 1 or what == "rho":
                    axis.plot(
                        line["illegal_loss"], line["legal_loss"], f"o{style}", color=color, label=label, markersize=4
                    )
        blind = means[(means["name"] == "random")]
        axis.plot(blind["illegal_loss"], blind["legal_loss"], "x", color="#8c8c8c", label="random")
        axis.axline((1, 1), slope=1, color="#8c8c8c", linewidth=0.8)
        axis.set_title(domain, fontsize=10)
        axis.set_xlabel("loss kept, illegal side")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("loss kept, legal side")
    axes[0][0].legend(fontsize=7, frameon=False)
    saved = save_figure(figure, path)
    plt.close(figure)
    return saved


def write_study_report(params: Params, reports: Path) -> list[Path]:
    """reports/study/: a table a domain, the baselines' sweep, and the curves over rho and the illegal weight."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for name in params.studies:
        study = read_json(reports / "study" / "results" / f"{name}.json", f"run `dvc repro study@{name}`")
        found.setdefault(study["domain"], []).append(study)
    out, written = reports / "study", []
    with_masks = {d: [s for s in ones if s["study"]["masks"]] for d, ones in found.items()}
    with_masks = {domain: ones for domain, ones in with_masks.items() if ones}
    for domain, ones in with_masks.items():
        header, rows = study_table(ones, params.rho)
        names = ones[0]["scores"]
        used = sorted({SCORES[side_score(names, side)].label for side in SIDES})
        pairs = "; ".join(
            f"seed {s['study']['seed']}: {' against '.join(', '.join(s['classes'][side]) for side in SIDES)}"
            for s in ones
        )
        users = ones[0]["adapt"]
        notes = [
            "Kept: 1 is what full fine-tuning changes, 0 the pretrained model; of the denoising loss, and of "
            f"{' and '.join(used)}.",
            "Averaged over both role assignments; a blind mask's gap is zero by construction. Interval: Student's, "
            "over seeds.",
            f"rho {params.rho:g}; users train {users['steps']} steps of {users['batch_size']} images after protection.",
            f"Classes: {pairs}.",
            "Rows and single weights save no compute: backprop and the optimiser run over whole tensors.",
        ]
        written.append(write_table(out / domain, f"Study of masks: {domain}", header, rows, notes))
    swept = [study for ones in found.values() for study in ones]
    header, rows = baseline_rows(swept)
    if rows:
        notes = [
            "Kept as in the study of masks; the roles as the case has them, one seed. A good baseline keeps little on the illegal side and much on the legal one."
        ]
        written.append(write_table(out / "baselines", "Settings of the baselines", header, rows, notes))
    if with_masks:
        curve_figure(with_masks, params.rho, out / "curves.png")
    return written
