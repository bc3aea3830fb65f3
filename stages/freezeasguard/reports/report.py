"""reports/index.html: what was run, the claims, tables, figures, masks and data on one page that can be mailed.

Images, styles and the code that sorts tables (DataTables, as the package itables ships it) are inside: it opens
without a network. The words and the layout are in page.html.
"""

from __future__ import annotations

import base64
import csv
import datetime
import io
import re
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_atomically
from freezeasguard.reading import read_json, read_png
from freezeasguard.reports.claims import NAME as CLAIMS
from freezeasguard.reports.claims import NOT_RUN
from freezeasguard.reports.masks import NAME as MASKS
from freezeasguard.reports.paper import GATHERED, n_classes
from freezeasguard.reports.paper_tables import read_costs
from freezeasguard.reports.tables import table_name
from freezeasguard.settings.params import Params

SECTIONS = {
    "claims": "Claims of the paper",
    "tradeoff": "Trade-off by freeze ratio",
    "tables": "Tables",
    "figures": "Figures",
    "masks": "Masks",
    "data": "Data",
    "conditions": "Run conditions",
}
CAPTIONS = {
    "samples-{}": "Real images, and what each arm's users generate: same prompt and same noise down each column.",
    "samples-rho-{}": "FreezeAsGuard over the freeze ratio (as the paper's Figures 7 and 9).",
    "samples-illegal-{}": "The methods on more prompts of illegal classes (as Figures 8, 10, 11 and 22 to 24).",
    "questionnaire-{}": "A set as raters would see it: the methods without their names (as Figure 21).",
    "cost-{}": "What an arm takes from quality over what a step of its users costs.",
    "agreement-{}": "A generic score against the domain's own, an image a point (as Figure 20).",
    "tradeoff-{}": "What each arm costs the legal user over what it costs the illegal one.",
    "losses-{}": "Fine-tuning loss of the illegal and the legal user.",
}
GRIDS = ("samples-", "questionnaire-", "contact", "captions")
"""Beginnings of the names of figures that are made of images: they become WebP, plots stay PNG."""
LEVELS = ((1600, 82), (1200, 70), (900, 55))
"""Largest width in pixels and quality, one after the other until the page fits."""
PAGE_BYTES = 15 * 2**20
PACKAGES = ("torch", "diffusers", "transformers", "dvc")


@dataclass(frozen=True)
class Cell:
    text: str
    kind: str = ""
    """Class of its style."""
    order: float | None = None
    """What it is sorted by, where its column holds numbers."""


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    header: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Figure:
    file: str
    caption: str
    uri: str
    width: int
    height: int
    grid: bool


# --- tables ------------------------------------------------------------------------------------------


def leading_number(text: str) -> float | None:
    """0.859 of "0.859 [0.750, 0.954]"; None where a text does not begin with a number."""
    found = re.match(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?(?=[\s%]|$)", text)
    return float(found[0]) if found else None


def verdict_kind(text: str) -> str:
    return {"holds": "holds", "does not hold": "fails"}.get(text, "open")


def make_table(name: str, title: str, header: list[str], rows: list[list[str]], notes: Iterable[str] = ()) -> Table:
    """A column of numbers alone, "-" among them, is sorted as such; one with "-" last, whatever the way."""
    columns = list(zip(*rows, strict=True))
    numeric = [
        any(leading_number(text) is not None for text in column)
        and all(text in ("-", "") or leading_number(text) is not None for text in column)
        for column in columns
    ]

    def cell(text: str, at: int) -> Cell:
        if header[at] == "Verdict":
            return Cell(text, verdict_kind(text))
        if numeric[at]:
            number = leading_number(text)
            kind = "number wider" if len(text) > 12 else "number"
            return Cell(text, kind, -1e99 if number is None else number)
        return Cell(text, "long" if len(text) > 60 else "text" if len(text) > 24 else "")

    return Table(name, title, header, [[cell(t, i) for i, t in enumerate(row)] for row in rows], list(notes))


def read_rendered(path: Path) -> Table:
    """A table as the stage `tables` (or `collect`) wrote it: cells from the CSV, title and notes from the Markdown."""
    cells, words = (path.with_name(f"{path.name}.{suffix}") for suffix in ("csv", "md"))  # a case's name may hold dots
    for file in (cells, words):
        if not file.is_file():
            raise FreezeAsGuardError(f"{file} is missing; run `dvc repro tables`")
    header, *rows = csv.reader(io.StringIO(cells.read_text()))
    lines = words.read_text().splitlines()
    title = next((line[2:] for line in lines if line.startswith("# ")), path.name)
    return make_table(path.name, title, header, rows, [line[2:] for line in lines if line.startswith("- ")])


# --- figures -----------------------------------------------------------------------------------------


class Album:
    """Image files as data URIs, each no larger than the level allows."""

    def __init__(self, level: int) -> None:
        self.width, self.quality = LEVELS[level]

    def figure(self, path: Path, caption: str, remedy: str) -> Figure:
        from PIL import Image

        image, grid = read_png(path, remedy), path.name.startswith(GRIDS)
        content, kind = path.read_bytes(), "png"
        if image.width > self.width:
            height = round(image.height * self.width / image.width)
            image = image.resize((self.width, height), Image.Resampling.LANCZOS)
            content = _encoded(image, "PNG")
        if grid:
            content, kind = _encoded(image, "WEBP", quality=self.quality), "webp"
        uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        return Figure(path.name, caption, uri, image.width, image.height, grid)


def _encoded(image: Any, form: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, form, **how)
    return buffer.getvalue()


def case_figures(params: Params, case: str, album: Album, folder: Path) -> list[Figure]:
    """Those of CAPTIONS that the stage `figures` could draw."""
    found = []
    for name, caption in CAPTIONS.items():
        path = folder / f"{name.format(case)}.png"
        if path.is_file():
            found.append(album.figure(path, caption, "run `dvc repro -f figures`"))
    return found


def mask_figures(params: Params, album: Album, folder: Path) -> list[Figure]:
    wanted = {"masks-by-block": "How much of each block a learned mask freezes (as Figures 12 and 13)."}
    for case in params.cases:
        wanted[f"masks-{case}"] = f"{case}: which tensors each arm freezes."
        for arm in params.arms(case):
            label = arm.label(params.rho)
            wanted[f"mask-learning-{case}-{arm.name}"] = f"{case}, {label}: the mask over its learning."
            wanted[f"simulated-users-{case}-{arm.name}"] = f"{case}, {label}: the simulated users' loss (as Figure 14)."
    paths = {folder / f"{name}.png": caption for name, caption in wanted.items()}
    return [album.figure(path, text, "run `dvc repro -f figures`") for path, text in paths.items() if path.is_file()]


def domain_parts(params: Params, album: Album, reports: Path) -> list[dict[str, Any]]:
    parts = []
    captions = {"classes": "Images a class (as Figure 15).", "contact": "The first images of each class.",
                "captions": "Images and their captions (as Figures 16 to 19)."}  # fmt: skip
    for domain in params.domains:
        folder, remedy = reports / "data" / domain, f"run `dvc repro survey@{domain}`"
        counts = read_json(folder / "counts.json", remedy, keys=("in", "kept", "rejected"))
        rejected = ", ".join(f"{n} {reason}" for reason, n in counts["rejected"].items()) or "none"
        text = f"{counts['in']} images in, {counts['kept']} kept; rejected: {rejected}."
        pictures = [album.figure(folder / f"{name}.png", caption, remedy) for name, caption in captions.items()]
        parts.append({"name": domain, "text": text, "figures": pictures})
    return parts


# --- what was run --------------------------------------------------------------------------------------


def git_commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "no git"


def versions() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)


def run_facts(params: Params, reports: Path, data: Path) -> dict[str, str]:
    """The page's first lines."""
    devices = {user["device"] for case, arm in params.cells for user in read_costs(data, case, arm.name).values()}
    newest = max(path.stat().st_mtime for path in (reports / "tables").glob("*.csv"))
    models = {name: model.repo or str(model.path) for name, model in params.models.items()}
    return {
        "Profile": params.profile,
        "Seed, roles": f"{params.seed}, {params.roles}",
        "Freeze ratio of the headline arms": f"{100 * params.rho:g}%",
        "Mask preset": params.mask.preset,
        "Models": ", ".join(f"{name} ({where})" if where != name else name for name, where in models.items()),
        "Trained on": ", ".join(sorted(devices)),
        "Tables of": datetime.datetime.fromtimestamp(newest, datetime.UTC).date().isoformat(),
        "Commit before them": git_commit(),
        "Versions": versions(),
    }


def cases_table(params: Params) -> Table:
    header = ["Case", "Paper's table", "Domain", "Source", "Model", "Illegal classes", "Legal classes", "Arms"]
    rows = [
        [
            name,
            str(case.table or "-"),
            case.domain,
            params.domain_of(name).source,
            case.model,
            str(n_classes(case.illegal)),
            str(n_classes(case.legal)),
            str(len(case.arms)),
        ]
        for name, case in params.cases.items()
    ]
    return make_table("cases", "Cases", header, rows)


# --- the page ------------------------------------------------------------------------------------------


def table_assets() -> tuple[str, str]:
    """DataTables as CSS, and as a JavaScript module in base64; importing the package would read pyproject.toml."""
    spec = find_spec("itables")
    if spec is None or spec.origin is None:
        raise FreezeAsGuardError("the page's tables need the package itables; `pip install itables`")
    folder = Path(spec.origin).parent / "html"
    module = base64.b64encode((folder / "dt_bundle.js").read_bytes()).decode()
    return (folder / "dt_bundle.css").read_text(), module


def content(params: Params, reports: Path, data: Path, album: Album) -> dict[str, Any]:
    """Everything that the page shows but its assets."""
    from ruamel.yaml import YAML

    tables, figures = reports / "tables", reports / "figures"
    gathered = [f"table{n}" for n in GATHERED if (tables / f"table{n}.csv").is_file()]
    own = [table_name(params, case) for case in params.cases]
    shown = sorted({name for name in (*gathered, *own) if re.fullmatch(r"table\d+|case-.*", name)})
    differences = [f"{name}-differences" for name in own]
    study = sorted(path.with_suffix("") for path in (reports / "study" / "tables").glob("*.csv"))
    claims = read_rendered(tables / CLAIMS)
    not_run = [row for row in claims.rows if row[-1].text == NOT_RUN]
    studied = [read_rendered(path) for path in study]
    further = [read_rendered(tables / name) for name in sorted({*own, *differences} - set(shown))]
    ratios = [figures / f"tradeoff-rho-{case}.png" for case in params.cases]
    remedy = "run `dvc repro -f figures`"
    settings = io.StringIO()
    YAML().dump(params.model_dump(mode="json", exclude={"workers", "device"}), settings)
    embedded = all(domain.source.startswith("embedded-") for domain in params.domains.values())
    about = (
        "The embedded miniature: small models and stand-in scores under their own names. Its numbers are compared with "
        "the paper's by order and gap, never by value."
        if embedded
        else "The numbers of this run beside the paper's."
    )
    return {
        "run": {"profile": params.profile, "about": about, "facts": run_facts(params, reports, data)},
        "sections": SECTIONS,
        "tally": Counter(re.sub(r" with n.*", "", row[-1].text) for row in claims.rows),
        "claims": replace(claims, rows=[row for row in claims.rows if row[-1].text != NOT_RUN]),
        "not_run": Table("claims-not-run", f"Claims {NOT_RUN}", claims.header, not_run),
        "tradeoffs": [
            album.figure(path, f"{case}: fall of quality over the freeze ratio, 95% intervals.", remedy)
            for case, path in zip(params.cases, ratios, strict=True)
        ],
        "tables": [*(read_rendered(tables / name) for name in shown), *studied],
        "further": further,
        "figures": {case: case_figures(params, case, album, figures) for case in params.cases},
        "masks": mask_figures(params, album, figures),
        "mask_tables": [read_rendered(tables / MASKS), read_rendered(tables / f"{MASKS}_blocks")],
        "domains": domain_parts(params, album, reports),
        "cases": cases_table(params),
        "settings": settings.getvalue(),
    }


def write_report(params: Params, reports: Path, data: Path) -> Path:
    """The page, with images as large as its size allows."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string((resources.files("freezeasguard.reports") / "page.html").read_text())
    css, js = table_assets()
    page = ""
    for level in range(len(LEVELS)):
        page = template.render(**content(params, reports, data, Album(level)), table_css=css, table_js=js)
        if len(page.encode()) <= PAGE_BYTES:
            break
    with write_atomically(reports / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return reports / "index.html"
