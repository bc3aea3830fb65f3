"""reports/tables/kept: where in the denoising loss an arm's user keeps what full fine-tuning learns."""

from __future__ import annotations

from pathlib import Path

from freezeasguard.reports.measures import read_scores
from freezeasguard.reports.rendering import write_table
from freezeasguard.scores.kept import LEAST_FALL
from freezeasguard.settings.params import Params
from freezeasguard.sides import SIDES

HEADER = ["Case", "Arm", "Side", "Kept", "held-out images", "t < 250", "t < 500", "t < 750", "t < 1000"]
QUARTERS = tuple(f"_quarter_{i}" for i in range(1, 5))


def kept_text(share: float | None) -> str:
    return "-" if share is None else f"{share:.2f}"


def kept_rows(params: Params, reports: Path) -> list[list[str]]:
    """A row a case, trained arm and side."""
    rows = []
    for case in params.cases:
        for arm in (arm for arm in params.arms(case) if not arm.before and arm.method != "full"):
            scores = read_scores(reports, case, arm.name)
            for side in SIDES:
                loss = scores[side]["loss"]
                shares = [loss[f"kept{part}"] for part in ("", "_held_out", *QUARTERS)]
                rows.append([case, arm.label(params.rho), side, *map(kept_text, shares)])
    return rows


def write_kept(params: Params, reports: Path) -> Path:
    notes = [
        "Share of full fine-tuning's fall of the denoising loss, at fixed noise, that the arm's user gets: on the "
        "adaptation images, on images that no user trained on, and on the adaptation images by quarter of the "
        f"timesteps. -: full fine-tuning lowers it by less than {LEAST_FALL:.0%}.",
    ]
    return write_table(
        reports / "tables" / "kept", "What is kept of full fine-tuning", HEADER, kept_rows(params, reports), notes
    )
