"""The figures: which prompts the sample grid shows and where, what is blurred, and what `dvc plots` reads."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from freezeasguard.reports import curves
from freezeasguard.reports.curves import generic_score, rho_figure, simulated_user_figure
from freezeasguard.reports.figures import methods_of, sample_grid, write_figures
from freezeasguard.reports.measures import CaseScores
from freezeasguard.reports.survey import caption_sheet, contact_sheet
from freezeasguard.reports.tables import write_tables
from freezeasguard.settings.params import Params
from freezeasguard.sides import SIDES
from reported import ARMS, N_IMAGES, shade, smoke, value, write_cells, write_image
from test_tables import write_golden_scores

LEFT, TOP, TILE, GAP = 165, 44, 96, 10
MODEL = Path(__file__).parent.parent / "data" / "models" / "tiny-1.5"


def test_a_side_of_few_classes_shows_several_of_its_prompts(tmp_path: Path) -> None:
    params = smoke()
    (case,) = params.cases
    rows = []
    for side, names in {"illegal": "a", "legal": "bc"}.items():
        for number in range(4):
            name = names[number % len(names)]
            rows.append(
                {
                    "side": side, "class": name, "subject": name, "part": "adaptation", "image": 0,
                    "path": f"{side}-{number}.png", "file": f"{side}-{number}.png",
                }
            )  # fmt: skip
    table = pd.DataFrame(rows)
    colors = {row["file"]: (20 + 25 * index, 0, 200) for index, row in enumerate(rows)}
    for folder in (tmp_path / "raw", *(tmp_path / arm.name for arm in params.arms(case))):
        folder.mkdir()
        table.to_csv(folder / "index.csv", index=False)
        for file, color in colors.items():
            Image.new("RGB", (8, 8), color).save(folder / file)
    path = sample_grid(params, case, tmp_path, tmp_path / "raw", tmp_path / "grid.png", columns=3)
    # Class a alone gives three; b and c take turns, and stand together: b, b, c.
    expected = ["illegal-0", "illegal-1", "illegal-2", "legal-0", "legal-2", "legal-1"]
    with Image.open(path) as sheet:
        assert sheet.width == LEFT + 6 * TILE + GAP
        for line in range(1 + len(params.arms(case))):
            for column, name in enumerate(expected):
                x = LEFT + column * TILE + (GAP if column >= 3 else 0) + TILE // 2
                assert sheet.getpixel((x, TOP + line * TILE + TILE // 2)) == colors[f"{name}.png"]


def edge(tile: Image.Image) -> int:
    """The largest step of red between neighbours in a row: of a picture with a sharp edge it is that edge."""
    red = np.asarray(tile)[:, :, 0].astype(int)
    return int(np.abs(np.diff(red, axis=1)).max())


@pytest.mark.parametrize("explicit", [False, True])
def test_the_sample_grid_blurs_what_is_explicit_and_nothing_else(tmp_path: Path, explicit: bool) -> None:
    params = smoke(explicit=explicit)
    write_cells(params, tmp_path)
    raw = tmp_path / "data/raw/portraits"
    path = sample_grid(params, "portraits", tmp_path / "data/images/portraits", raw, tmp_path / "grid.png")
    n_arms = len(params.arms("portraits"))
    with Image.open(path) as sheet:
        for line in range(n_arms + 1):
            for column in range(2 * N_IMAGES):
                x, y = LEFT + column * TILE + (GAP if column >= N_IMAGES else 0), TOP + line * TILE
                found = edge(sheet.crop((x + 2, y + 2, x + TILE - 6, y + TILE - 6)))
                row = 9 if line == 0 else line - 1  # the first line shows the training images
                sharp = abs(255 - 2 * shade(row, column >= N_IMAGES, 0)[0])
                assert found < 0.1 * sharp if explicit else found > 0.3 * sharp, (line, column)


@pytest.mark.parametrize("blurred", [False, True])
def test_the_contact_sheet_blurs_what_is_explicit_and_nothing_else(tmp_path: Path, blurred: bool) -> None:
    for i in range(2):
        write_image(tmp_path / f"{i}.png", (10, 20, 30))
    split = pd.DataFrame({"class": ["a", "a"], "path": ["0.png", "1.png"]})
    with Image.open(contact_sheet(split, tmp_path, tmp_path / "sheet.png", blurred=blurred)) as sheet:
        for column in range(2):
            found = edge(sheet.crop((150 + 72 * column + 1, 4, 150 + 72 * column + 66, 68)))
            assert found < 30 if blurred else found > 90


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Path]:
    root, params = tmp_path_factory.mktemp("whole"), smoke([*ARMS, "freezeasguard-50"])
    write_cells(params, root)
    write_golden_scores(params, root / "reports")
    write_tables(params, root / "reports", root / "data")
    write_figures(params, root / "data", root / "reports", {"portraits": MODEL})
    return params, root


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that `curves` draws from now on, kept instead of written."""
    figures: list[Any] = []
    monkeypatch.setattr(curves, "_saved", lambda figure, path: figures.append(figure) or path)
    return figures


def test_the_rho_figure_has_a_line_a_family_and_its_intervals(
    whole: tuple[Params, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, _ = whole
    write_cells(params, tmp_path)
    figures = drawn(monkeypatch)
    rho_figure(CaseScores(params, "portraits", tmp_path / "reports"), tmp_path / "x.png")
    panels = figures[0].axes
    arms = {arm.name: number for number, arm in enumerate(params.arms("portraits"))}
    for axis, side in zip(panels, SIDES, strict=False):
        line = next(c for c in axis.containers if c.get_label() == "FG")
        x, y = line.lines[0].get_data()
        full, own = (value(arms[name], side) for name in ("full", "freezeasguard-50"))
        blind = next(c for c in axis.containers if c.get_label() == "R").lines[0].get_xdata()
        assert list(x) == pytest.approx([30, 50], abs=2) and not set(x) & set(blind)  # beside each other
        assert y[1] == pytest.approx(100 * (own / full - 1))
        (low, high) = line.lines[2][0].get_segments()[1][:, 1]
        assert (low, high) == pytest.approx((y[1] - 5 / full, y[1] + 5 / full))  # +- 0.05, see reported.py
    gap = next(c for c in panels[2].containers if c.get_label() == "FG").lines[0].get_data()[1]
    sides = [next(c for c in a.containers if c.get_label() == "FG").lines[0].get_data()[1] for a in panels[:2]]
    assert gap == pytest.approx(sides[0] - sides[1])
    labels = {text.get_text() for text in panels[2].get_legend().get_texts()}
    assert labels == {"FG", "R", "UCE", "IMMA"}


def test_the_simulated_users_losses_are_dealt_by_update_step_and_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = drawn(monkeypatch)
    losses = [100 * update + 10 * step + user for update in range(6) for step in range(4) for user in range(2)]
    assert simulated_user_figure([float(loss) for loss in losses], 2, 6, tmp_path / "x.png")
    for user, axis in enumerate(figures[0].axes):
        assert [list(line.get_ydata()) for line in axis.lines] == [
            [100 * update + 10 * step + user for step in range(4)] for update in (4, 5)
        ]
    assert simulated_user_figure([1.0] * 7, 2, 6, tmp_path / "x.png") is None
    assert simulated_user_figure([float(i) for i in range(6)], 2, 3, tmp_path / "x.png")
    assert [list(axis.lines[0].get_ydata()) for axis in figures[1].axes] == [[0, 2, 4], [1, 3, 5]]


def test_figures_use_what_a_case_has(whole: tuple[Params, Path]) -> None:
    params, _ = whole
    assert [arm.name for arm in methods_of(params, "portraits")] == ["full", "uce", "imma", "freezeasguard"]
    other = params.model_copy(update={"cases": {"a": params.cases["portraits"].model_copy(update={"table": 3})}})
    assert methods_of(other, "a")[-1].name == "freezeasguard-50"  # the nearest to the paper's 70%
    arms = ["full", "uce-before", "freeze_attention", "freeze_outside_attention", "anchored", "freezeasguard", "random"]
    more = params.model_copy(update={"cases": {"a": params.cases["portraits"].model_copy(update={"arms": arms})}})
    assert [arm.name for arm in methods_of(more, "a")] == ["full", "freeze_attention", "anchored", "freezeasguard"]
    assert generic_score(("csd", "fid", "clip", "lpips", "topiq")) == "lpips"
    assert generic_score(("csd", "clip", "topiq")) == "topiq" and generic_score(("csd", "clip")) == "clip"
    assert generic_score(("csd", "fid")) is None


@pytest.mark.parametrize(("size", "tile"), [(8, 96), (128, 128), (512, 192)])
def test_tiles_are_of_a_readable_size_at_any_resolution(tmp_path: Path, size: int, tile: int) -> None:
    params = smoke()
    write_cells(params, tmp_path)
    for path in (tmp_path / "data/images/portraits").rglob("*.png"):
        Image.new("RGB", (size, size)).save(path)
    images, raw = tmp_path / "data/images/portraits", tmp_path / "data/raw/portraits"
    path = sample_grid(params, "portraits", images, raw, tmp_path / "g.png", arms=params.arms("portraits")[:2])
    with Image.open(path) as sheet:
        assert sheet.size == (LEFT + 2 * N_IMAGES * tile + GAP, TOP + 3 * tile)
    labels = ["short", "an arm whose label is longer than the room that most need"]
    how = {"arms": params.arms("portraits")[:2], "labels": labels}
    with Image.open(sample_grid(params, "portraits", images, raw, tmp_path / "h.png", **how)) as sheet:
        left = sheet.width - 2 * N_IMAGES * tile - GAP
        beside = np.asarray(sheet.crop((left - 5, TOP, left, TOP + 3 * tile)))
        assert left > LEFT and (beside == 255).all()  # the label ends before the tiles


@pytest.mark.parametrize("blurred", [False, True, ["a"]])
def test_the_caption_sheet_shows_captions_of_what_is_not_explicit(tmp_path: Path, blurred: Any) -> None:
    for name in "ab":
        write_image(tmp_path / f"{name}.png", (10, 20, 30))
    split = pd.DataFrame({"class": ["a", "b"], "path": ["a.png", "b.png"], "caption": ["a photo of x"] * 2})
    with Image.open(caption_sheet(split, tmp_path, tmp_path / "sheet.png", blurred=blurred)) as sheet:
        edges = [edge(sheet.crop((4, 128 * line + 4, 124, 128 * line + 124))) for line in range(2)]
        hidden = [blurred is True or (blurred and name in blurred) for name in "ab"]
        assert [found < 60 for found in edges] == [bool(one) for one in hidden]


def test_every_case_has_its_figures_and_plots(whole: tuple[Params, Path]) -> None:
    _, root = whole
    figures = {path.name for path in (root / "reports/figures").iterdir()}
    names = ("masks-{}", "losses-{}", "mask-learning-{}-freezeasguard", "tradeoff-{}", "samples-{}")
    names += ("samples-rho-{}", "samples-illegal-{}", "questionnaire-{}", "tradeoff-rho-{}", "cost-{}", "agreement-{}")
    names += ("simulated-users-{}-freezeasguard", "masks-by-block", "mask-learning-{}-freezeasguard-50")
    assert figures == {f"{name.format('portraits')}.png" for name in names}
    with (root / "reports/plots/losses-portraits.csv").open(newline="") as file:
        header, *steps = csv.reader(file)
    # the pretrained model's user and the eraser's gate do not train
    assert header[:3] == ["step", "full illegal", "full legal"] and len(header) == 1 + 2 * 6
    assert [row[0] for row in steps] == ["0", "1", "2", "3"]
    assert [float(row[1]) for row in steps[:2]] == pytest.approx([1.0, 0.75])  # the mean so far
    assert float(steps[0][2]) == pytest.approx(1.1)


def test_tradeoff_points_keep_their_sides(whole: tuple[Params, Path]) -> None:
    _, root = whole
    with (root / "reports/plots/tradeoff.csv").open(newline="") as file:
        points = {row["arm"]: row for row in csv.DictReader(file)}
    # the golden scores keep as much on both sides; those of `write_cells` do not
    assert points["full"]["kept_illegal"] == "0.8"
    from freezeasguard.reports.figures import tradeoff_rows
    from freezeasguard.reports.measures import CaseScores

    params, _ = whole
    write_cells(params, root / "other")
    rows = {row[1]: row[2:] for row in tradeoff_rows(CaseScores(params, "portraits", root / "other/reports"))}
    assert rows["freezeasguard"] == ["0.5", "0.47"] and rows["pretrained"] == ["0", "0"]
