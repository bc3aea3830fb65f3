"""reports/index.html: the tables, the figures and the masks' diagnostics on one page, readable offline."""

from __future__ import annotations

import csv
import html
from pathlib import Path

from freezeasguard.files import write_atomically
from freezeasguard.reading import read_json
from freezeasguard.reports.masks import NAME
from freezeasguard.reports.tables import table_name
from freezeasguard.settings.params import Params

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
table { border-collapse: collapse; font-size: 13px; margin: 1rem 0 } td, th { padding: .3rem .6rem; text-align: right }
th { border-bottom: 2px solid #333 } tr:nth-child(even) td { background: #f5f5f5 }
td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left } img { max-width: 100% } .wide { overflow-x: auto }
"""


def html_table(rows: list[list[str]]) -> str:
    head, *body = rows
    cells = ["".join(f"<td>{html.escape(c)}</td>" for c in row) for row in body]
    header = "".join(f"<th>{html.escape(c)}</th>" for c in head)
    return f"<div class=wide><table><tr>{header}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table></div>"


def notes_list(table: Path) -> str:
    """The notes under a table's Markdown."""
    notes = [line[2:] for line in table.read_text().splitlines() if line.startswith("- ")]
    return "<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>"


def write_report(params: Params, reports: Path) -> Path:
    """Everything that the other reports wrote; the study's tables where there are any."""
    parts = [f"<h1>FreezeAsGuard: profile {html.escape(params.profile)}</h1>"]
    for name in params.cases:
        path = reports / "tables" / table_name(params, name)
        parts.append(f"<h2>{html.escape(name)}</h2>")
        parts.append(html_table(list(csv.reader(path.with_suffix(".csv").read_text().splitlines()))))
        parts.append(notes_list(path.with_suffix(".md")))
        captions = {
            f"samples-{name}": "Same prompt and same noise down each column.",
            f"masks-{name}": "Which tensors each arm freezes.",
            f"losses-{name}": "Fine-tuning loss of the illegal and the legal user.",
            f"tradeoff-{name}": "What each arm costs the legal user over what it costs the illegal one.",
        }
        for figure, caption in captions.items():
            if (reports / "figures" / f"{figure}.png").is_file():
                parts.append(f"<h3>{caption}</h3><img src='figures/{figure}.png' alt='{figure}'>")
        for arm in params.arms(name):
            figure = f"mask-learning-{name}-{arm.name}"
            if (reports / "figures" / f"{figure}.png").is_file():
                parts.append(f"<h3>Learning the mask: {html.escape(arm.label(params.rho))}</h3>")
                parts.append(f"<img src='figures/{figure}.png' alt='mask learning'>")
    for file, title in ((NAME, "Is each mask its signal's work?"), (f"{NAME}_blocks", "Masks and signals by block")):
        rows = list(csv.reader((reports / "tables" / f"{file}.csv").read_text().splitlines()))
        parts.append(f"<h2>{title}</h2>{html_table(rows)}")
    for study in sorted((reports / "study" / "tables").glob("*.csv")):
        rows = list(csv.reader(study.read_text().splitlines()))
        parts.append(f"<h2>Study: {html.escape(study.stem)}</h2>{html_table(rows)}")
        parts.append(notes_list(study.with_suffix(".md")))
    for domain in params.domains:
        path, remedy = reports / "data" / domain / "counts.json", f"run `dvc repro survey@{domain}`"
        counts = read_json(path, remedy, keys=("in", "kept", "rejected"))
        rejected = ", ".join(f"{n} {reason}" for reason, n in counts["rejected"].items()) or "none"
        parts.append(f"<h2>Data: {html.escape(domain)}</h2>")
        parts.append(f"<p>{counts['in']} images in, {counts['kept']} kept; rejected: {html.escape(rejected)}.</p>")
        parts.append(f"<img src='data/{domain}/classes.png' alt='images a class'>")
        parts.append(f"<img src='data/{domain}/contact.png' alt='contact sheet'>")
    page = f"<!doctype html><meta charset=utf-8><title>FreezeAsGuard</title><style>{STYLE}</style>{''.join(parts)}\n"
    with write_atomically(reports / "index.html") as temporary:
        temporary.write_text(page)
    return reports / "index.html"
