"""Rows as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from freezeasguard.files import write_atomically


def render_markdown(title: str, header: list[str], rows: list[list[str]], notes: list[str]) -> str:
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    body = [line(header), rule, *(line(row) for row in rows)]
    return "\n".join([f"# {title}", "", *body, "", *(f"- {note}" for note in notes), ""])


def compact_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown whose columns are not padded: for the README, where one long cell would widen every line."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows))


def render_csv(header: list[str], rows: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    return buffer.getvalue()


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(render_csv(header, rows))


def render_latex(title: str, header: list[str], rows: list[list[str]], notes: list[str]) -> str:
    def escape(text: str) -> str:
        for old, new in (("%", r"\%"), ("_", r"\_"), ("↓", r"$\downarrow$"), ("↑", r"$\uparrow$")):
            text = text.replace(old, new)
        return text

    lines = [" & ".join(escape(cell) for cell in row) + r" \\" for row in (header, *rows)]
    body = [lines[0], r"\midrule", *lines[1:]]
    spec = "ll" + "r" * (len(header) - 2)
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{escape(title)}. {escape(' '.join(notes))}}}",
            rf"\begin{{tabular}}{{{spec}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def write_table(path: Path, title: str, header: list[str], rows: list[list[str]], notes: list[str]) -> Path:
    """Write path.md, path.csv and path.tex; returns the first."""
    renders = {
        "md": render_markdown(title, header, rows, notes),
        "csv": render_csv(header, rows),
        "tex": render_latex(title, header, rows, notes),
    }
    for suffix, text in renders.items():
        with write_atomically(path.with_name(f"{path.name}.{suffix}")) as temporary:
            temporary.write_text(text)
    return path.with_name(f"{path.name}.md")
