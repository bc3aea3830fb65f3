"""The page: one file with everything inside, that sorts, fits a phone and follows light and dark."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from browser import MISSING, Browser, chromium, installed
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.reports import report
from freezeasguard.reports.figures import write_figures
from freezeasguard.reports.rendering import write_table
from freezeasguard.reports.report import Album, leading_number, make_table, read_rendered, verdict_kind, write_report
from freezeasguard.reports.tables import write_tables
from freezeasguard.settings.params import Params
from reported import ARMS, smoke, write_cells
from test_tables import write_golden_scores

MODEL = Path(__file__).parent.parent / "data" / "models" / "tiny-1.5"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Path]:
    root, params = tmp_path_factory.mktemp("whole"), smoke([*ARMS, "freezeasguard-50", "random-50"])
    write_cells(params, root)
    write_golden_scores(params, root / "reports")
    write_tables(params, root / "reports", root / "data")
    write_figures(params, root / "data", root / "reports", {"portraits": MODEL})
    for domain in params.domains:
        folder = root / "reports/data" / domain
        folder.mkdir(parents=True)
        (folder / "counts.json").write_text('{"in": 3, "kept": 2, "rejected": {"unreadable": 1}}')
        for name in ("classes", "contact", "captions"):
            Image.new("RGB", (640, 320), (90, 120, 200)).save(folder / f"{name}.png")
    return params, root


def page_of(whole: tuple[Params, Path]) -> str:
    params, root = whole
    return write_report(params, root / "reports", root / "data").read_text()


def test_the_page_shows_tables_figures_and_the_study(whole: tuple[Params, Path]) -> None:
    _, root = whole
    without = page_of(whole)
    for file in ("tradeoff-portraits", "tradeoff-rho-portraits", "mask-learning-portraits-freezeasguard", "contact"):
        assert f'data-file="{file}.png"' in without
    assert "Recogniser distance" in without and "1 unreadable" in without and "study-portraits" not in without
    assert (
        without.index('data-name="claims"') < without.index('data-name="table2"') < without.index('data-name="cases"')
    )
    assert "not run in this profile" in without and "toy GPU" in without and "torch 2" in without
    (root / "reports/study/tables").mkdir(parents=True)
    (root / "reports/study/tables/study-portraits.csv").write_text("Mask,n\nFG-30%,3\n")
    (root / "reports/study/tables/study-portraits.md").write_text("- A note <of> it.\n")
    page = page_of(whole)
    assert "study-portraits" in page and "A note &lt;of&gt; it." in page


def test_the_page_is_one_file(whole: tuple[Params, Path]) -> None:
    page = page_of(whole)
    fetched = re.findall(r'(?:src|href)="([^"#][^":]*):', page) + re.findall(r"url\(['\"]?(\w+):", page)
    assert set(fetched) == {"data"} and page.count("<img ") == page.count('src="data:image/')
    assert len(page.encode()) < report.PAGE_BYTES


def test_a_page_that_grows_too_large_takes_smaller_images(
    whole: tuple[Params, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, root = whole
    page_of(whole)
    large = len((root / "reports/index.html").read_bytes())
    monkeypatch.setattr(report, "LEVELS", ((1600, 82), (60, 40)))
    monkeypatch.setattr(report, "PAGE_BYTES", large - 1)
    page = page_of(whole)
    assert len(page.encode()) < large and max(map(int, re.findall(r'" width="(\d+)"', page))) == 60


def test_a_missing_image_or_table_is_an_error(whole: tuple[Params, Path], tmp_path: Path) -> None:
    params, root = whole
    path = root / "reports/data/portraits/contact.png"
    content = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(FreezeAsGuardError, match=r"contact.png is missing; run `dvc repro survey@portraits`"):
            write_report(params, root / "reports", root / "data")
    finally:
        path.write_bytes(content)
    with pytest.raises(FreezeAsGuardError, match=r"claims.csv is missing; run `dvc repro tables`"):
        write_report(params, tmp_path, root / "data")


def test_numbers_are_sorted_as_such() -> None:
    assert leading_number("0.859 [0.750, 0.954] (1 of 30 without a face)") == 0.859
    assert leading_number("-3.1%") == -3.1 and leading_number("30% of rows") == 30
    assert leading_number("FG-30%") is None and leading_number("-") is None and leading_number("2.0.1") is None
    table = make_table("t", "T", ["Arm", "Value"], [["FG-30%", "9.5 [9, 10]"], ["R-30%", "-"], ["b", "10.25"]])
    assert [[cell.order for cell in row] for row in table.rows] == [[None, 9.5], [None, -1e99], [None, 10.25]]
    assert [verdict_kind(v) for v in ("holds", "does not hold", "not decidable with n = 3")] == [
        "holds",
        "fails",
        "open",
    ]


def test_images_shrink_to_the_level(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 500), "red").save(tmp_path / "plot.png")
    found = Album(1).figure(tmp_path / "plot.png", "c", "r")
    assert (found.width, found.height, found.grid) == (1200, 300, False)


# --- in a browser --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not installed():
        pytest.skip(MISSING)
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def shown(whole: tuple[Params, Path]) -> Path:
    page_of(whole)
    return whole[1] / "reports/index.html"


READY = "return document.documentElement.dataset.ready === 'yes'"
UNSEEN = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.dataset.file)"
COLUMN = """const table = document.querySelector('table[data-name="table2"]');
return [...table.tBodies[0].rows].map(row => Number(row.cells[2].dataset.order))"""
CLICK = """document.querySelector('table[data-name="table2"] thead th:nth-child(3)').click()"""
BACK = "return getComputedStyle(document.body).backgroundColor"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_works_in_a_browser(shown: Path, browser: Browser, width: int, dark: bool) -> None:
    browser.log()
    browser.open(shown, width=width, dark=dark)
    deadline = time.monotonic() + 30
    while not browser.run(READY) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert browser.run(READY) and browser.log() == [] and browser.run(UNSEEN) == []
    assert browser.run("return document.images.length") > 10
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run(BACK) == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    given = browser.run(COLUMN)
    browser.run(CLICK)
    assert browser.run(COLUMN) == sorted(given) and given != sorted(given, reverse=True)
    browser.run(CLICK)
    assert browser.run(COLUMN) == sorted(given, reverse=True) and browser.log() == []


def test_a_table_of_a_case_whose_name_holds_a_dot(tmp_path: Path) -> None:
    write_table(
        tmp_path / "table7-portraits-1.4", "Portraits", ["Arm", "Side", "Score"], [["Full FT", "legal", "1"]], ["n"]
    )
    table = read_rendered(tmp_path / "table7-portraits-1.4")
    assert (table.title, [cell.text for cell in table.rows[0]], table.notes) == (
        "Portraits",
        ["Full FT", "legal", "1"],
        ["n"],
    )
