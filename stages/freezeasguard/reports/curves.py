"""Curves over the freeze ratio and cost, the simulated users' loss, masks by block, and scores that disagree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from freezeasguard.arms import Arm
from freezeasguard.reading import read_table
from freezeasguard.reports.drawing import matplotlib_pyplot, save_figure
from freezeasguard.reports.masks import Masks
from freezeasguard.reports.measures import CaseScores
from freezeasguard.reports.network import BLOCK_ORDER, block_of
from freezeasguard.reports.paper_tables import cost_ratios, read_costs
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.params import Params
from freezeasguard.sides import SIDES

DASHES = {"tensor": "-", "row": "--", "element": ":"}
OF_UNITS = {"tensor": "", "row": " of rows", "element": " of weights"}
DODGE = 1.2
"""Percent points between the families of arms that share a ratio."""
SHOWN_UPDATES = (5, 10)
"""Mask updates after which Figure 14 shows the simulated user's loss."""


def families(params: Params, case: str) -> dict[tuple[str, str], list[Arm]]:
    """(method, granularity) -> its arms by freeze ratio, after fine-tuning and of the first draw."""
    found: dict[tuple[str, str], list[Arm]] = {}
    for arm in params.arms(case):
        if not (arm.before or arm.draw or arm.kind.control) and arm.method != "full":
            found.setdefault((arm.method, arm.granularity), []).append(arm)
    return {key: sorted(arms, key=lambda arm: arm.rho(params.rho)) for key, arms in found.items()}


def fall_with_ends(scores: CaseScores, arm: Arm, side: str) -> tuple[float, float, float]:
    """Percent by which quality fell, and the ends of its interval in their order."""
    low, high = sorted(scores.fall(arm, side, end) for end in ("low", "high"))
    return scores.fall(arm, side), low, high


def rho_figure(scores: CaseScores, path: Path) -> Path:
    """What each method takes from either side over rho, and the illegal-legal gap, with 95% intervals.

    A method without a ratio is a horizontal line; points of one ratio stand beside each other. The gap's bars are as if
    both sides' errors were independent: the sides share no image.
    """
    plt = matplotlib_pyplot()
    params = scores.params
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharex=True)
    shown = families(params, scores.case)
    beside = {family: DODGE * i for i, family in enumerate(f for f, arms in shown.items() if arms[0].kind.freezes)}
    for family, arms in shown.items():
        granularity = family[1]
        falls = np.array([[fall_with_ends(scores, arm, side) for side in SIDES] for arm in arms])  # [arm, side, 3]
        value, below, above = falls[..., 0], falls[..., 0] - falls[..., 1], falls[..., 2] - falls[..., 0]
        gap = (value[:, 0] - value[:, 1], np.hypot(below[:, 0], above[:, 1]), np.hypot(above[:, 0], below[:, 1]))
        panels = [(value[:, s], below[:, s], above[:, s]) for s in range(len(SIDES))] + [gap]
        label = re.sub(r"[-, ]*\{share\}", "", arms[0].kind.label) + OF_UNITS[granularity]
        for axis, (middle, down, up) in zip(axes, panels, strict=True):
            if arms[0].kind.freezes:
                x = [100 * arm.rho(params.rho) + beside[family] - DODGE * (len(beside) - 1) / 2 for arm in arms]
                bars = np.clip(np.stack([down, up]), 0, None)
                look = {"marker": "o", "markersize": 4, "linewidth": 1.3, "elinewidth": 0.8, "capsize": 2}
                axis.errorbar(
                    x, middle, yerr=bars, color=arms[0].color, linestyle=DASHES[granularity], label=label, **look
                )
            else:
                axis.axhline(middle[0], color=arms[0].color, linewidth=1.1, linestyle="-.", label=label)
    for axis, title in zip(
        axes, ("illegal side: higher is stronger", "legal side: higher is costlier", "gap"), strict=True
    ):
        axis.set_title(title, fontsize=10)
        axis.axhline(0, color="#8c8c8c", linewidth=0.8)
        axis.set_xlabel("share frozen, rho (%)")
        axis.grid(alpha=0.25)
    axes[0].set_xlim(0, 100)
    named = dict.fromkeys(SCORES[scores.speaks_for(side)].label for side in SIDES)
    axes[0].set_ylabel(f"fall of quality against Full FT (%)\n{' / '.join(named)}", fontsize=8)
    axes[2].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _saved(figure, path)


def cost_figure(scores: CaseScores, data: Path, path: Path) -> Path | None:
    """Quality against cost: each arm's fall over its users' step time, as a share of full fine-tuning's.

    None where no user's steps were timed.
    """
    plt = matplotlib_pyplot()
    params, points = scores.params, []
    base = read_costs(data, scores.case, "full")
    for arm in params.arms(scores.case):
        ratios = [] if arm.before else cost_ratios(read_costs(data, scores.case, arm.name), base, "median_step_s")
        if ratios:
            points.append((arm, 100 * float(np.mean(ratios))))
    if not points:
        return None
    figure, axes = plt.subplots(1, len(SIDES), figsize=(10, 3.8), sharex=True)
    for axis, side in zip(axes, SIDES, strict=True):
        for arm, percent in points:
            value, low, high = fall_with_ends(scores, arm, side)
            bar = [[max(0, value - low)], [max(0, high - value)]]
            look = {"color": arm.color, "marker": "o" if arm.linestyle == "-" else "s", "linestyle": ""}
            axis.errorbar([percent], [value], yerr=bar, elinewidth=0.8, label=arm.label(params.rho), **look)
        axis.set_title(f"{side} side", fontsize=10)
        axis.set_xlabel("seconds a step, % of Full FT")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("fall of quality (%)")
    axes[1].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1), ncols=1 + len(points) // 18)
    return _saved(figure, path)


def simulated_user_figure(losses: list[float], n_users: int, updates: int, path: Path) -> Path | None:
    """The simulated users' loss in the steps after a mask update (paper, Figure 14); over all where each has one step.

    Args:
        losses: of every user step: by mask update, then step, then user.
        updates: of the mask; None is drawn where the losses do not divide into them.
    """
    if not losses or len(losses) % (n_users * updates):
        return None
    steps = np.array(losses).reshape(updates, -1, n_users)
    plt = matplotlib_pyplot()
    figure, axes = plt.subplots(1, n_users, figsize=(5 * n_users, 3), sharey=True, squeeze=False)
    for user, axis in enumerate(axes[0]):
        shown = sorted({min(update, updates) for update in SHOWN_UPDATES})
        curves = {f"round {update}": steps[update - 1, :, user] for update in shown}
        if steps.shape[1] == 1:
            curves = {"one step a round": steps[:, 0, user]}
        for label, curve in curves.items():
            axis.plot(range(1, len(curve) + 1), curve, marker=".", label=label)
        axis.set_title(f"simulated {SIDES[user]} user" if n_users > 1 else "simulated user", fontsize=10)
        axis.set_xlabel("round" if steps.shape[1] == 1 else "fine-tuning step of the round")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("denoising loss")
    axes[0][0].legend(fontsize=8, frameon=False)
    return _saved(figure, path)


def agreement_figure(tables: Mapping[Arm, pd.DataFrame], domain: str, generic: str, rho: float, path: Path) -> Path:
    """An image's generic score against the domain's: LPIPS and style disagree in the paper's Figure 20."""
    plt = matplotlib_pyplot()
    figure, axes = plt.subplots(1, len(SIDES), figsize=(10, 4), sharex=True, sharey=True)
    for axis, side in zip(axes, SIDES, strict=True):
        both = {arm: table.loc[table["side"] == side, [domain, generic]].astype(float) for arm, table in tables.items()}
        for arm, values in both.items():
            axis.scatter(values[domain], values[generic], s=12, alpha=0.7, color=arm.color, label=arm.label(rho))
        correlation = pd.concat(both.values()).corr("spearman").iloc[0, 1]
        axis.set_title(f"{side} side, Spearman {correlation:+.2f}", fontsize=10)
        axis.set_xlabel(SCORES[domain].header.replace("↓", "(lower is better)").replace("↑", "(higher is better)"))
        axis.grid(alpha=0.25)
    axes[0].set_ylabel(SCORES[generic].header.replace("↓", "(lower is better)").replace("↑", "(higher is better)"))
    axes[1].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _saved(figure, path)


def generic_score(names: tuple[str, ...]) -> str | None:
    """LPIPS, else another score of pairs of images, else one of a prompt; None where a domain has neither."""
    others = [name for name in names[1:] if SCORES[name].an_image]
    ranks = {"lpips": 0, **{name: 1 for name in others if SCORES[name].sees_pairs}}
    return min(
        (name for name in others if name in ranks or "clip" in name), key=lambda n: ranks.get(n, 2), default=None
    )


def block_figure(params: Params, masks: Masks, path: Path) -> Path:
    """The share of each block's tensors that a learned mask freezes, a row a mask (paper, Figures 12-13)."""
    plt = matplotlib_pyplot()
    labels, rows = [], []
    for (case, arm), content in masks.items():
        names = list(content["diagnostics"]["task_signal"][SIDES[0]]["by_tensor"])
        if content.get("granularity", "tensor") == "tensor":
            blocks = [[name in content["frozen"] for name in names if block_of(name) == block] for block in BLOCK_ORDER]
            labels.append(f"{case} {arm.label(params.rho)}")
            rows.append([np.mean(block) if block else np.nan for block in blocks])
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.36 * len(rows)))
    grid = 100 * np.array(rows).reshape(len(rows), len(BLOCK_ORDER))
    axis.imshow(grid, aspect="auto", cmap="Blues", vmin=0, vmax=100)
    for y, row in enumerate(grid):
        for x, share in enumerate(row):
            text = "" if np.isnan(share) else f"{share:.0f}"
            axis.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if share > 60 else "black")
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set_xticks(range(len(BLOCK_ORDER)), BLOCK_ORDER, fontsize=8)
    axis.set_title("% of a block's tensors frozen", fontsize=10)
    return _saved(figure, path)


def case_curves(
    params: Params, case: str, data: Path, reports: Path, protected: Mapping[Arm, dict[str, Any]], out: Path
) -> Iterator[Path]:
    """A case's curves, as far as its arms, scores and diagnostics allow them."""
    scores = CaseScores(params, case, reports)
    yield rho_figure(scores, out / f"tradeoff-rho-{case}.png")
    if path := cost_figure(scores, data, out / f"cost-{case}.png"):
        yield path
    for arm, content in protected.items():
        d = content["diagnostics"]
        if arm.headline and d.get("user_loss"):
            n_users = len(SIDES) if params.mask_block(case, arm).users == "per_side" else 1
            file = out / f"simulated-users-{case}-{arm.name}.png"
            if path := simulated_user_figure(d["user_loss"], n_users, len(d["mean_mask"]), file):
                yield path
    names = params.domain_of(case).score_names()
    generic = generic_score(names)
    if generic and SCORES[names[0]].an_image:
        columns = ("file", "side", names[0], generic)
        remedy, folder = f"run `dvc repro -f score@{case}`", data / "scores" / case / "images"
        shown = [arm for arm in params.arms(case) if arm.headline]
        tables = {arm: read_table(folder / f"{arm.name}.csv", remedy, columns) for arm in shown}
        yield agreement_figure(tables, names[0], generic, params.rho, out / f"agreement-{case}.png")


def _saved(figure: Any, path: Path) -> Path:
    saved = save_figure(figure, path)
    matplotlib_pyplot().close(figure)
    return saved
