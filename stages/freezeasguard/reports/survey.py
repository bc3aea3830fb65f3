"""What a domain holds: counts in, out and why; images a class (Figure 15); a contact sheet."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap
from typing import Any

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from freezeasguard.data.manifest import read_manifest
from freezeasguard.data.split import read_split
from freezeasguard.files import write_atomically, write_json
from freezeasguard.models.images import blur
from freezeasguard.reading import read_png
from freezeasguard.reports.drawing import matplotlib_pyplot, save_figure
from freezeasguard.sides import PARTS

PART_COLORS = ("#0072b2", "#e69f00", "#56b4e9")


def count_images(manifest: pd.DataFrame, split: pd.DataFrame) -> dict[str, Any]:
    """How many images came in, how many stayed, and why the others did not."""
    reasons = manifest.loc[manifest["status"] != "ok", "status"].str.replace(r" of .*", "", regex=True)
    n_ok = int((manifest["status"] == "ok").sum())
    return {
        "in": len(manifest),
        "kept": n_ok,
        "in_split": len(split),
        "left_out_by_split": n_ok - len(split),
        "rejected": {str(reason): int(n) for reason, n in reasons.value_counts().sort_index().items()},
        "by_class": {
            str(name): {part: int((rows["part"] == part).sum()) for part in PARTS}
            for name, rows in split.groupby("class", sort=True)
        },
    }


def class_figure(counts: dict[str, Any], path: Path) -> Path:
    """Images a class, stacked by the part of the split (paper, Figure 15)."""
    plt = matplotlib_pyplot()
    names = list(counts["by_class"])
    figure, axis = plt.subplots(figsize=(max(5, 0.4 * len(names) + 2), 3.4))
    base = [0] * len(names)
    for part, color in zip(PARTS, PART_COLORS, strict=True):
        heights = [counts["by_class"][name][part] for name in names]
        axis.bar(range(len(names)), heights, bottom=base, color=color, label=part.replace("_", " "), width=0.8)
        base = [b + h for b, h in zip(base, heights, strict=True)]
    axis.set_xticks(
        range(len(names)), [n.replace("-", " ").title() for n in names], rotation=60, ha="right", fontsize=8
    )
    axis.set_ylabel("images")
    axis.legend(fontsize=8, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    axis.spines[["top", "right"]].set_visible(False)
    saved = save_figure(figure, path)
    plt.close(figure)
    return saved


def contact_sheet(split: pd.DataFrame, raw: Path, path: Path, *, blurred: bool | list[str], columns: int = 8) -> Path:
    """The first images of each class, a row a class; explicit material is blurred beyond recognition.

    Args:
        blurred: all classes, none, or these.
    """
    tile, left = 72, 150
    groups = list(split.groupby("class", sort=True))
    sheet = Image.new("RGB", (left + columns * tile, max(1, len(groups)) * tile), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for line, (name, rows) in enumerate(groups):
        draw.text((4, line * tile + tile // 2 - 8), str(name).replace("-", " ")[:20], fill="black", font=font)
        for column, file in enumerate(rows["path"].head(columns)):
            image = read_png(raw / file, f"run `dvc repro -f crawl@{raw.name}`")
            shown = image.resize((tile - 4, tile - 4), Image.Resampling.LANCZOS)
            shown = blur(shown) if blurred is True or (blurred and name in blurred) else shown
            sheet.paste(shown, (left + column * tile, line * tile + 2))
    with write_atomically(path) as temporary:
        sheet.save(temporary, "PNG")
    return path


def caption_sheet(
    split: pd.DataFrame, raw: Path, path: Path, *, blurred: bool | list[str], classes: int = 10, tile: int = 128
) -> Path:
    """One image of each of the first classes beside its caption (paper, Figures 16-19).

    Args:
        blurred: all classes, none, or these.
    """
    rows = split.groupby("class", sort=True).head(1).sort_values("class").head(classes)
    sheet = Image.new("RGB", (tile + 560, max(1, len(rows)) * tile), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for line, (_, row) in enumerate(rows.iterrows()):
        image = read_png(raw / str(row["path"]), f"run `dvc repro -f crawl@{raw.name}`")
        shown = image.resize((tile - 4, tile - 4), Image.Resampling.LANCZOS)
        hidden = blurred is True or (blurred and row["class"] in blurred)
        sheet.paste(blur(shown) if hidden else shown, (2, line * tile + 2))
        text = "(caption of explicit material left out)" if hidden else "\n".join(wrap(str(row["caption"]), 68)[:6])
        draw.multiline_text((tile + 8, line * tile + 8), text, fill="black", font=font)
    with write_atomically(path) as temporary:
        sheet.save(temporary, "PNG")
    return path


def survey_domain(raw: Path, splits: Path, out: Path, *, blurred: bool | list[str]) -> dict[str, Any]:
    """Write counts.json, Figure 15, the contact sheet and the captions of a domain; returns the counts."""
    table = read_split(splits)
    counts = count_images(read_manifest(raw), table)
    class_figure(counts, out / "classes.png")
    contact_sheet(table, raw, out / "contact.png", blurred=blurred)
    caption_sheet(table, raw, out / "captions.png", blurred=blurred)
    write_json(out / "counts.json", counts)
    return counts
