"""Figures: masks (the paper's Figures 12-13), samples (4, 7-11, 21-24), loss curves, trade-off; and `dvc plots`' data.

Curves over the freeze ratio, costs, simulated users and the agreement of scores are drawn in `curves`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from freezeasguard.arms import Arm
from freezeasguard.files import write_atomically
from freezeasguard.models.images import blur
from freezeasguard.models.protected_file import read_protected_file
from freezeasguard.reading import read_png, read_table
from freezeasguard.reports.curves import block_figure, case_curves
from freezeasguard.reports.drawing import matplotlib_pyplot, save_figure
from freezeasguard.reports.masks import learned_masks
from freezeasguard.reports.measures import CaseScores, read_losses
from freezeasguard.reports.network import block_of, network_order
from freezeasguard.reports.rendering import write_csv
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.params import Params
from freezeasguard.sides import SIDES

SIDE_COLORS = dict(zip(SIDES, ("#d55e00", "#009e73"), strict=True))
Curves = dict[Arm, dict[str, list[float]]]
"""arm -> side -> the user's loss a step; empty where the arm's users do not train."""


def mask_figure(masks: dict[str, set[str]], names: list[str], path: Path) -> Path:
    """One row a mask, one column a tensor in network order, dark where frozen; blocks are marked."""
    plt = matplotlib_pyplot()
    order = network_order(names)
    grid = np.array([[name in frozen for name in order] for frozen in masks.values()])
    figure, axis = plt.subplots(figsize=(11, 0.9 + 0.45 * len(masks)))
    axis.imshow(grid, aspect="auto", interpolation="nearest", cmap="Greys", vmin=0, vmax=1.2)
    axis.set_yticks(range(len(masks)), list(masks))
    blocks = [block_of(name) for name in order]
    starts = [i for i in range(len(order)) if i == 0 or blocks[i] != blocks[i - 1]]
    ends = [*starts[1:], len(order)]
    for start in starts[1:]:
        axis.axvline(start - 0.5, color="#d55e00", linewidth=0.8)
    wide = [(s, e) for s, e in zip(starts, ends, strict=True) if e - s > 6]
    axis.set_xticks([(s + e) / 2 for s, e in wide], [blocks[s] for s, _ in wide], fontsize=8)
    axis.set_xlabel(f"{len(order)} tensors in network order (dark: frozen)")
    saved = save_figure(figure, path)
    plt.close(figure)
    return saved


def smoothed(losses: list[float]) -> Any:
    """Mean over the last 15 steps, a pandas Series."""
    return pd.Series(losses, dtype=float).rolling(15, min_periods=1).mean()


def loss_figure(curves: Curves, rho: float, path: Path) -> Path:
    """Fine-tuning loss by step, a panel a side, smoothed over 15 steps."""
    plt = matplotlib_pyplot()
    figure, axes = plt.subplots(1, len(SIDES), figsize=(10, 3.2), sharey=True, squeeze=False)
    for axis, side in zip(axes[0], SIDES, strict=True):
        for arm, sides in curves.items():
            if sides[side]:
                look = {"color": arm.color, "linestyle": arm.linestyle, "linewidth": 1.4}
                axis.plot(smoothed(sides[side]), label=arm.label(rho), **look)
        axis.set_title(f"{side} user", fontsize=10)
        axis.set_xlabel("fine-tuning step")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("denoising loss")
    axes[0][0].legend(fontsize=8, frameon=False)
    saved = save_figure(figure, path)
    plt.close(figure)
    return saved


def write_losses(curves: Curves, path: Path) -> None:
    """The curves of `loss_figure`: a row a step, a column an arm and side, for `dvc plots`."""
    columns = {f"{arm.name} {side}": smoothed(sides[side]) for arm, sides in curves.items() for side in SIDES}
    table = pd.DataFrame({name: column for name, column in columns.items() if len(column)})
    rows = [[str(step), *("" if np.isnan(v) else f"{v:.4g}" for v in row)] for step, row in enumerate(table.to_numpy())]
    write_csv(path, ["step", *table.columns], rows)


def tradeoff_rows(scores: CaseScores) -> list[list[str]]:
    """case, arm, and what it keeps of full fine-tuning's fall of the loss on both sides; arms where both are known."""
    rows = []
    for arm in scores.params.arms(scores.case):
        kept = [scores.kept_loss(arm, side) for side in SIDES]
        if None not in kept:
            rows.append([scores.case, arm.name, *(f"{value:.4g}" for value in kept)])
    return rows


TRADEOFF_HEADER = ["case", "arm", *(f"kept_{side}" for side in SIDES)]


def tradeoff_figure(scores: CaseScores, path: Path) -> Path:
    """Every arm's cost on the legal side over its effect on the illegal one: by the loss kept, and by quality.

    An arm is the better, the further it lies from the diagonal on the side of the legal user: above it where the axes
    are what is kept, below it where they are what is lost. The bars are the 95% intervals of the arm's own score.
    """
    plt = matplotlib_pyplot()
    figure, (kept_axis, fall_axis) = plt.subplots(1, 2, figsize=(10, 4.4))
    rho = scores.params.rho
    for arm in scores.params.arms(scores.case):
        marker = {"color": arm.color, "marker": "o" if arm.linestyle == "-" else "s", "linestyle": ""}
        kept = [scores.kept_loss(arm, side) for side in SIDES]
        if None not in kept:
            kept_axis.plot(*([value] for value in kept), **marker)
        falls = [scores.fall(arm, side) for side in SIDES]
        # which end of the score's interval is the lower fall depends on the score
        ends = [sorted(scores.fall(arm, side, end) for end in ("low", "high")) for side in SIDES]
        x, y = ([[max(0, fall - low)], [max(0, high - fall)]] for fall, (low, high) in zip(falls, ends, strict=True))
        bars = {"xerr": x, "yerr": y, "elinewidth": 0.8, "ecolor": arm.color}
        fall_axis.errorbar(*([fall] for fall in falls), **bars, **marker, label=arm.label(rho))
    kept_axis.axline((1, 1), slope=1, color="#8c8c8c", linewidth=0.8)
    fall_axis.axline((0, 0), slope=1, color="#8c8c8c", linewidth=0.8)
    kept_axis.set_xlabel("loss kept, illegal side")
    kept_axis.set_ylabel("loss kept, legal side")
    labels = [f"fall of quality, {side} side (%, {SCORES[scores.speaks_for(side)].label})" for side in SIDES]
    fall_axis.set_xlabel(labels[0])
    fall_axis.set_ylabel(labels[1])
    for axis in (kept_axis, fall_axis):
        axis.grid(alpha=0.25)
    fall_axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    saved = save_figure(figure, path)
    plt.close(figure)
    return saved


TILE_PX = (96, 192)
"""Smallest and largest tile of a grid, whatever the size of its images."""


def sample_grid(
    params: Params,
    case: str,
    images: Path,
    raw: Path,
    path: Path,
    columns: int = 6,
    *,
    arms: Sequence[Arm] | None = None,
    labels: Sequence[str] | None = None,
    sides: Sequence[str] = SIDES,
) -> Path:
    """Rows: the real image, then each arm; columns: prompts of the sides, the same noise down a column.

    One prompt a class of each side, and more of each where there are fewer classes than `columns`.

    Args:
        arms: None: all of the case; labels: of the arms, instead of their own.
    """
    from PIL import ImageDraw, ImageFont

    arms = params.arms(case) if arms is None else arms
    text = ("side", "class", "subject", "part", "path", "file")
    remedy = f"run `dvc repro -f generate@{case}-{arms[0].name}`"
    first = read_table(images / arms[0].name / "index.csv", remedy, text, numbers=("image",))
    picked = []
    for side in sides:
        rows = first[(first["side"] == side) & (first["part"] == "adaptation") & (first["image"] == 0)]
        turn = rows.groupby("class").cumcount().rename("turn")
        dealt = rows.join(turn).sort_values(["turn", "class"], kind="stable").head(columns)
        picked.append(dealt.sort_values(["class", "turn"], kind="stable"))
    chosen = pd.concat(picked)
    drawn = read_png(images / arms[0].name / str(chosen.iloc[0]["file"]), remedy).width
    font = ImageFont.load_default(size=14)
    names = ["training image", *(labels or [arm.label(params.rho) for arm in arms])]
    left = max(165, 12 + round(max(font.getlength(name) for name in names)))
    tile, top, gap = min(max(drawn, TILE_PX[0]), TILE_PX[1]), 44, 10
    n_left = len(picked[0])
    width = left + len(chosen) * tile + gap
    sheet = Image.new("RGB", (width, top + (len(arms) + 1) * tile), "white")
    draw = ImageDraw.Draw(sheet)

    def x_of(column: int) -> int:
        return left + column * tile + (gap if column >= n_left else 0)

    for row, label in enumerate(names):
        draw.text((6, top + row * tile + tile // 2 - 8), label, fill="black", font=font)
    for column, side in zip((0, n_left), sides, strict=False):
        draw.text((x_of(column), 4), f"{side} classes", fill=SIDE_COLORS[side], font=font)
    small = ImageFont.load_default(size=11)
    for column, (_, row) in enumerate(chosen.iterrows()):
        if row["turn"] == 0:
            draw.text((x_of(column), 24), str(row["subject"])[: tile // 7], fill="black", font=small)
        files = [raw / str(row["path"]), *(images / arm.name / str(row["file"]) for arm in arms)]
        for line, file in enumerate(files):
            image = read_png(file, "run its stage again (`dvc repro -f crawl` or `generate`)")
            resized = image.resize((tile - 4, tile - 4), Image.Resampling.LANCZOS)
            if params.domain_of(case).shows_explicit(str(row["class"])):
                resized = blur(resized)
            sheet.paste(resized, (x_of(column), top + line * tile))
    with write_atomically(path) as temporary:
        sheet.save(temporary, "PNG")
    return path


def signal_figure(diagnostics: dict[str, Any], path: Path) -> Path:
    """The mask over its learning: both sides' losses, mean of the mask, share of saturated logits."""
    plt = matplotlib_pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(10, 2.8))
    for side, color in SIDE_COLORS.items():
        axes[0].plot(diagnostics["loss"][side], label=side, color=color, linewidth=1)
    axes[0].set_ylabel("loss under the soft mask")
    axes[0].legend(fontsize=8, frameon=False)
    axes[1].plot(diagnostics["mean_mask"], label="mean(m)", color="#0072b2")
    axes[1].plot(diagnostics["saturated"], label="share saturated", color="#8c8c8c")
    axes[1].set_ylim(0, 1)
    axes[1].legend(fontsize=8, frameon=False)
    for axis in axes:
        axis.set_xlabel("mask step")
        axis.grid(alpha=0.25)
    saved = save_figure(figure, path)
    plt.close(figure)
    return saved


def tensor_names(model: Path) -> list[str]:
    """The UNet's tensor names, read from the weight file's header."""
    from safetensors import safe_open

    names: list[str] = []
    for file in sorted((model / "unet").glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            names += list(opened.keys())
    return sorted(set(names))


def read_curves(params: Params, case: str, data: Path) -> Curves:
    return {
        arm: {side: read_losses(data / "adapted" / case / arm.name, side) for side in SIDES}
        for arm in params.arms(case)
    }


def methods_of(params: Params, case: str) -> list[Arm]:
    """What the paper's sample figures compare: its methods, of whole tensors, FreezeAsGuard's at its highest ratio.

    That is 70% for artworks and explicit images, as in Figures 10, 11, 23 and 24, where the case has no higher one.
    Learned anchors, ours, stand beside them.
    """
    plain = [arm for arm in params.arms(case) if arm.granularity == "tensor" and not (arm.before or arm.draw)]
    others = ("full", "uce", "imma", "anchored")
    shown = [arm for arm in plain if arm.method in others or arm.kind.module == "components"]
    found = [arm for arm in shown if not arm.kind.control]
    guards = [arm for arm in plain if arm.method == "freezeasguard"]
    optimum = 0.3 if params.cases[case].table in (2, 5, 7) else 0.7
    return found + sorted(guards, key=lambda arm: abs(arm.rho(params.rho) - optimum))[:1]


def write_samples(params: Params, case: str, images: Path, raw: Path, out: Path) -> Iterator[Path]:
    """All arms; FreezeAsGuard over rho (Figures 7, 9); the methods on more illegal prompts (22-24); a rating sheet."""
    yield sample_grid(params, case, images, raw, out / f"samples-{case}.png")
    guards = [arm for arm in params.arms(case) if arm.method == "freezeasguard" and arm.granularity == "tensor"]
    if len(guards) > 1:
        over = [Arm("full"), *sorted(guards, key=lambda arm: arm.rho(params.rho))]
        yield sample_grid(params, case, images, raw, out / f"samples-rho-{case}.png", arms=over)
    methods = methods_of(params, case)
    illegal = {"columns": 12, "sides": SIDES[:1]}
    yield sample_grid(params, case, images, raw, out / f"samples-illegal-{case}.png", arms=methods, **illegal)
    # Figure 21: raters see the methods without their names, in an order of their own.
    order = np.random.default_rng(params.seed).permutation(len(methods))
    hidden = {"arms": [methods[i] for i in order], "labels": [f"image {chr(65 + i)}" for i in range(len(order))]}
    yield sample_grid(params, case, images, raw, out / f"questionnaire-{case}.png", columns=3, **hidden)


def write_figures(params: Params, data: Path, reports: Path, models: dict[str, Path]) -> list[Path]:
    """Every case's figures in `reports/figures`, and `dvc plots`' data in `reports/plots`; a missing cell is an error.

    Args:
        models: each case's diffusers folder.
    Returns:
        The figures.
    """
    written, points, out = [], [], reports / "figures"
    for case in params.cases:
        folder = data / "protected" / case
        protected = {arm: read_protected_file(folder / arm.name) for of, arm in params.protected if of == case}
        masks = {f"{case} {arm.label(params.rho)}": set(p["frozen"]) for arm, p in protected.items() if p["frozen"]}
        if masks:
            written.append(mask_figure(masks, tensor_names(models[case]), out / f"masks-{case}.png"))
        curves = read_curves(params, case, data)
        written.append(loss_figure(curves, params.rho, out / f"losses-{case}.png"))
        write_losses(curves, reports / "plots" / f"losses-{case}.csv")
        for arm, content in protected.items():
            if "mean_mask" in content["diagnostics"]:
                written.append(signal_figure(content["diagnostics"], out / f"mask-learning-{case}-{arm.name}.png"))
        scores = CaseScores(params, case, reports)
        written.append(tradeoff_figure(scores, out / f"tradeoff-{case}.png"))
        points += tradeoff_rows(scores)
        raw = data / "raw" / params.cases[case].domain
        written += write_samples(params, case, data / "images" / case, raw, out)
        written += case_curves(params, case, data, reports, protected, out)
    if masks_of_cases := learned_masks(params, data):
        written.append(block_figure(params, masks_of_cases, out / "masks-by-block.png"))
    write_csv(reports / "plots" / "tradeoff.csv", TRADEOFF_HEADER, points)
    return written
