"""Figures: masks over the tensors (Figures 12-13), sample grid (Figure 8), loss curves (Figure 14)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from freezeasguard.files import read_json, write_atomically
from freezeasguard.models.images import blur
from freezeasguard.models.protected_file import read_protected_file
from freezeasguard.reports.drawing import matplotlib_pyplot, save_figure
from freezeasguard.reports.tables import arm_label
from freezeasguard.settings.params import Params, split_arm
from freezeasguard.sides import SIDES

COLORS = {
    "pretrained": "#8c8c8c",
    "full": "#0072b2",
    "uce": "#56b4e9",
    "imma": "#cc79a7",
    "freezeasguard": "#d55e00",
    "random": "#009e73",
}
"""Okabe-Ito, told apart by the colour-blind."""


def block_of(name: str) -> str:
    """The UNet block of a tensor: "down 0", "mid", "up 3", "time", "in", "out"."""
    parts = name.split(".")
    if parts[0] in ("down_blocks", "up_blocks"):
        return f"{parts[0].split('_')[0]} {parts[1]}"
    return {"mid_block": "mid", "time_embedding": "time", "conv_in": "in"}.get(parts[0], "out")


PART_ORDER = ["resnets", "attentions", "downsamplers", "upsamplers"]
BLOCK_ORDER = ["in", "time", *(f"down {i}" for i in range(4)), "mid", *(f"up {i}" for i in range(4)), "out"]


def network_order(names: list[str]) -> list[str]:
    """Tensor names in the order in which an image passes them: block, layer, its resnet, its attention."""

    def place(name: str) -> tuple[int, int, int, str]:
        parts = name.split(".")
        inside = next((i for i, part in enumerate(parts) if part in PART_ORDER), None)
        if inside is None:
            return BLOCK_ORDER.index(block_of(name)), 0, 0, name
        layer = int(parts[inside + 1])
        if block_of(name) == "mid":  # resnet 0, attention 0, resnet 1
            return BLOCK_ORDER.index("mid"), 2 * layer + (parts[inside] == "attentions"), 0, name
        last = parts[inside].endswith("samplers")
        return BLOCK_ORDER.index(block_of(name)), 99 if last else layer, PART_ORDER.index(parts[inside]), name

    return sorted(names, key=place)


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


def loss_figure(curves: dict[str, dict[str, list[float]]], labels: dict[str, str], path: Path) -> Path:
    """Fine-tuning loss by step, a panel a side, smoothed over 15 steps."""
    plt = matplotlib_pyplot()
    figure, axes = plt.subplots(1, len(SIDES), figsize=(10, 3.2), sharey=True, squeeze=False)
    for axis, side in zip(axes[0], SIDES, strict=True):
        for arm, sides in curves.items():
            losses = pd.Series(sides[side], dtype=float)
            if len(losses):
                smooth = losses.rolling(15, min_periods=1).mean()
                method, percent = split_arm(arm)
                style = "-" if percent is None else "--"  # a ratio of its own
                axis.plot(smooth, style, label=labels[arm], color=COLORS.get(method), linewidth=1.4)
        axis.set_title(f"{side} user", fontsize=10)
        axis.set_xlabel("fine-tuning step")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("denoising loss")
    axes[0][0].legend(fontsize=8, frameon=False)
    saved = save_figure(figure, path)
    plt.close(figure)
    return saved


def sample_grid(params: Params, case: str, images: Path, raw: Path, path: Path, columns: int = 6) -> Path:
    """Rows: the real image, then each arm; columns: prompts of both sides, the same noise down a column.

    One prompt a class of each side, and more of each where there are fewer classes than `columns`.
    """
    from PIL import ImageDraw, ImageFont

    arms = params.arms(case)
    tables = {arm: pd.read_csv(images / arm / "index.csv", keep_default_na=False) for arm in arms}
    first = tables[arms[0]]
    picked = []
    for side in SIDES:
        rows = first[(first["side"] == side) & (first["part"] == "adaptation") & (first["image"] == 0)]
        turn = rows.groupby("class").cumcount().rename("turn")
        dealt = rows.join(turn).sort_values(["turn", "class"], kind="stable").head(columns)
        picked.append(dealt.sort_values(["class", "turn"], kind="stable"))
    chosen = pd.concat(picked)
    tile, left, top, gap = 96, 165, 44, 10
    n_left = len(picked[0])
    width = left + len(chosen) * tile + gap
    sheet = Image.new("RGB", (width, top + (len(arms) + 1) * tile), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)

    def x_of(column: int) -> int:
        return left + column * tile + (gap if column >= n_left else 0)

    labels = ["training image", *(arm_label(arm, params.arm_rho(arm)) for arm in arms)]
    for row, label in enumerate(labels):
        draw.text((6, top + row * tile + tile // 2 - 8), label, fill="black", font=font)
    draw.text((left, 4), "illegal classes", fill="#d55e00", font=font)
    draw.text((x_of(n_left), 4), "legal classes", fill="#009e73", font=font)
    small = ImageFont.load_default(size=11)
    for column, (_, row) in enumerate(chosen.iterrows()):
        if row["turn"] == 0:
            draw.text((x_of(column), 24), str(row["subject"]), fill="black", font=small)
        files = [raw / str(row["path"]), *(images / arm / str(row["file"]) for arm in arms)]
        for line, file in enumerate(files):
            with Image.open(file) as image:
                resized = image.convert("RGB").resize((tile - 4, tile - 4), Image.Resampling.LANCZOS)
            if params.domains[params.cases[case].domain].explicit:
                resized = blur(resized)
            sheet.paste(resized, (x_of(column), top + line * tile))
    with write_atomically(path) as temporary:
        sheet.save(temporary, "PNG")
    return path


def signal_figure(diagnostics: dict[str, Any], path: Path) -> Path:
    """The mask over its learning: both sides' losses, mean of the mask, share of saturated logits."""
    plt = matplotlib_pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(10, 2.8))
    for side, color in zip(SIDES, ("#d55e00", "#009e73"), strict=True):
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


def write_figures(params: Params, data: Path, out: Path, models: dict[str, Path]) -> list[Path]:
    """Every case's figures; a missing cell is an error."""
    written = []
    for case in params.cases:
        arms = params.arms(case)
        protected = {arm: read_protected_file(data / "protected" / params.protected(case, arm)) for arm in arms}
        labels = {arm: arm_label(arm, params.arm_rho(arm)) for arm in arms}
        masks = {f"{case} {labels[arm]}": set(p["frozen"]) for arm, p in protected.items() if p["frozen"]}
        if masks:
            written.append(mask_figure(masks, tensor_names(models[case]), out / f"masks-{case}.png"))
        remedy = "run `dvc repro adapt`"
        curves = {
            arm: {side: read_json(data / "adapted" / case / arm / f"{side}.json", remedy)["losses"] for side in SIDES}
            for arm in arms
        }
        written.append(loss_figure(curves, labels, out / f"losses-{case}.png"))
        for arm, content in protected.items():
            if "mean_mask" in content["diagnostics"]:
                written.append(signal_figure(content["diagnostics"], out / f"mask-learning-{case}-{arm}.png"))
        raw = data / "raw" / params.cases[case].domain
        written.append(sample_grid(params, case, data / "images" / case, raw, out / f"samples-{case}.png"))
    return written
