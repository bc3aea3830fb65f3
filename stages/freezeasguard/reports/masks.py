"""reports/mask_diagnostics: is each learned mask its signal's work, and where in the network does it sit?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from freezeasguard.arms import Arm
from freezeasguard.models.protected_file import overlap, read_protected_file
from freezeasguard.reports.network import BLOCK_ORDER, block_of
from freezeasguard.reports.rendering import write_csv, write_table
from freezeasguard.settings.params import Params
from freezeasguard.sides import SIDES

NAME = "mask_diagnostics"


Masks = dict[tuple[str, Arm], dict[str, Any]]
"""(case, arm) -> protected.json of every learned mask."""


def learned_masks(params: Params, data: Path) -> Masks:
    return {
        (case, arm): read_protected_file(data / "protected" / case / arm.name)
        for case, arm in params.protected
        if arm.kind.learned
    }


def summary_row(params: Params, case: str, arm: Arm, content: dict[str, Any]) -> list[str]:
    d = content["diagnostics"]
    seeds = ", ".join(f"{share:.2f}" for share in d["overlap_across_seeds"]) or "-"
    path = "-"
    if check := d.get("path_check"):
        path = "; ".join(
            f"{c['path_sum']:.4f} = {c['loss_pretrained']:.4f} - {c['loss_finetuned']:.4f}"
            for c in (check[side] for side in SIDES)
        )
    return [
        case,
        arm.label(params.rho),
        f"{100 * d['share_of_parameters_frozen']:.1f}%",
        f"{d['overlap_expected_by_chance']:.2f}",
        f"{d['overlap_with_initial_logits']:.2f}",
        f"{d['overlap_with_zeroed_signal']:.2f}",
        seeds,
        f"{d['rank_correlation_of_sides']:.2f}",
        f"{100 * d['saturated'][-1]:.0f}%",
        path,
    ]


SUMMARY_HEADER = [
    "Case",
    "Mask",
    "Parameters frozen",
    "Overlap by chance",
    "with initial logits",
    "with zeroed signal",
    "across seeds",
    "Rank corr. of sides",
    "Saturated",
    "Path sums (illegal; legal) = fall of the loss",
]


def block_rows(masks: Masks, params: Params) -> tuple[list[str], list[list[str]]]:
    """Per block of the UNet: the share of its tensors that a mask freezes, and each side's share of the signal."""
    header = ["Case", "Mask", "Of", *BLOCK_ORDER]
    rows = []
    for (case, arm), content in masks.items():
        label = arm.label(params.rho)
        signals = {side: content["diagnostics"]["task_signal"][side]["by_tensor"] for side in SIDES}
        names = list(signals[SIDES[0]])
        if content.get("granularity", "tensor") == "tensor":
            counts = {b: [name in content["frozen"] for name in names if block_of(name) == b] for b in BLOCK_ORDER}
            shares = [f"{100 * sum(c) / len(c):.0f}%" if c else "-" for c in counts.values()]  # not every UNet has all
            rows.append([case, label, "tensors frozen", *shares])
        for side, signal in signals.items():
            total = sum(signal.values())
            sums = [sum(v for name, v in signal.items() if block_of(name) == b) for b in BLOCK_ORDER]
            rows.append([case, label, f"signal, {side}", *(f"{100 * s / total:.0f}%" for s in sums)])
    return header, rows


def case_overlap_lines(masks: Masks, params: Params) -> list[str]:
    """How far the headline masks of different cases agree; one that ignores its case guards nothing in particular."""
    headline = {case: content["frozen"] for (case, arm), content in masks.items() if arm.headline}
    cases = list(headline)
    return [
        f"Overlap between cases: {a} and {b} {overlap(headline[a], headline[b]):.2f} (by chance {params.rho:g})."
        for i, a in enumerate(cases)
        for b in cases[i + 1 :]
        if headline[a]
    ]


def write_mask_report(params: Params, data: Path, reports: Path) -> list[Path]:
    """The summary, the blocks, and mask_diagnostics_tensors.csv with both sides' signal of every tensor."""
    masks = learned_masks(params, data)
    rows = [summary_row(params, case, arm, content) for (case, arm), content in masks.items()]
    notes = [
        "Two unrelated masks overlap by chance; a mask equal to its initial logits, or to the run whose signal is "
        "zeroed, learned nothing.",
        "Path sums: the signal along theta_ft to theta_pre adds up to the fall of the loss, on the same noise.",
        *case_overlap_lines(masks, params),
    ]
    written = [write_table(reports / "tables" / NAME, "Is each mask its signal's work?", SUMMARY_HEADER, rows, notes)]
    header, rows = block_rows(masks, params)
    by_block = "Share of a side's task signal by block of the UNet; below zero where training made the loss worse."
    written.append(
        write_table(reports / "tables" / f"{NAME}_blocks", "Masks and signals by block", header, rows, [by_block])
    )
    tensors = [
        [case, arm.name, name, str(int(name in content["frozen"])), *(f"{signals[side][name]:.3e}" for side in SIDES)]
        for (case, arm), content in masks.items()
        for signals in [{side: content["diagnostics"]["task_signal"][side]["by_tensor"] for side in SIDES}]
        for name in signals[SIDES[0]]
    ]
    header = ["case", "arm", "tensor", "frozen_whole", *(f"signal_{side}" for side in SIDES)]
    write_csv(reports / "tables" / f"{NAME}_tensors.csv", header, tensors)
    return written
