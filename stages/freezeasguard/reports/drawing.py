"""Matplotlib without a screen, and figures that are the same file when they are the same figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from freezeasguard.files import write_atomically


def matplotlib_pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "freezeasguard"  # the same figure is the same file
    return plt


def save_figure(figure: Any, path: Path) -> Path:
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, bbox_inches="tight", metadata={"Software": None})
    return path
