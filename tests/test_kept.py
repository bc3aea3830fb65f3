"""The table of what is kept: by image that was trained on or not, and by quarter of the timesteps."""

from __future__ import annotations

from pathlib import Path

from freezeasguard.files import write_json
from freezeasguard.reports.kept import HEADER, kept_rows, write_kept
from reported import smoke, write_cells


def test_a_row_a_trained_arm_and_side_in_the_order_of_the_header(tmp_path: Path) -> None:
    params = smoke(["pretrained", "uce-before", "full", "uce", "freezeasguard"])
    write_cells(params, tmp_path)
    quarters = {f"kept_quarter_{i}": kept for i, kept in enumerate((0.1, None, 0.3, -0.4), 1)}
    loss = {"kept": 0.5, "kept_held_out": 0.25, **quarters}
    path = tmp_path / "reports/scores/portraits/freezeasguard.json"
    write_json(path, {"illegal": {"loss": loss}, "legal": {"loss": {**loss, "kept_held_out": None}}})
    rows = kept_rows(params, tmp_path / "reports")
    assert [(row[1], row[2]) for row in rows] == [(a, s) for a in ("UCE", "FG-30%") for s in ("illegal", "legal")]
    assert rows[2][3:] == ["0.50", "0.25", "0.10", "-", "0.30", "-0.40"] and rows[3][4] == "-"
    written = write_kept(params, tmp_path / "reports").read_text()
    assert all(name in written for name in HEADER) and written.count("FG-30%") == 2
