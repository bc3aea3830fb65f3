"""new-case: what is wrong with the images, the model or the folder is told before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from freezeasguard.cli import cli
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.new_case import Added, add_case
from freezeasguard.settings.params import load_params
from freezeasguard.settings.profiles import check_cells, write_profile

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789" * 4


def noise(path: Path, seed: int, side: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).save(path)


def fill(folder: Path, first: int, n: int = 10) -> None:
    for i in range(n):
        noise(folder / f"{i}.png", first + i)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the profile smoke, the shipped model, and two folders of images beside it."""
    folder = tmp_path / "project"
    write_profile("smoke", folder / "params.yaml")
    (folder / "data/models").symlink_to(ROOT / "data/models")
    fill(tmp_path / "bad/jane", 0)
    fill(tmp_path / "bad/joe", 100)
    fill(tmp_path / "good", 200)
    monkeypatch.chdir(folder)
    return folder


def add(name: str = "mine", model: str = "tiny-1.5", revision: str | None = None, **how: Any) -> Added:
    folders = {"illegal": Path("../bad"), "legal": Path("../good")}
    return add_case(name, folders, model, revision, how.get("size_px", 64), how.get("only", False))


def written(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and "models" not in p.relative_to(folder).parts
    }


def one_more(name: str, content: bytes | Path) -> Callable[[Path], None]:
    def spoil(outside: Path) -> None:
        path = outside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.read_bytes() if isinstance(content, Path) else content)

    return spoil


def broken(outside: Path) -> None:
    """Of the class joe four images can be used: two are no images, one is no file, three are copies."""
    joe = outside / "bad/joe"
    for i in (0, 1):
        (joe / f"{i}.png").write_bytes(b"no image")
    (joe / "2.png").unlink()
    (joe / "2.png").symlink_to(outside / "nowhere.png")
    for i in (3, 4, 5):
        shutil.copyfile(joe / "9.png", joe / f"{i}.png")


def same_class(outside: Path) -> None:
    for i, name in enumerate(("jane doe", "jane-doe")):
        fill(outside / "bad" / name, 300 + 50 * i)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda o: noise(o / "bad/loose.png", 1), r"has 1 images beside its sub-folders \(as loose.png\)"),
        (lambda o: noise(o / "bad/joe/deep/x.png", 1), "class 'joe' has a sub-folder 'deep'"),
        (lambda o: (o / "bad/empty").mkdir(), "class 'empty' has 0 images .*png"),
        (lambda o: fill(o / "bad/few", 400, 9), "class 'few' has 9 images; give it 10"),
        (lambda o: fill(o / "bad/2024", 400), "class '2024' has a name that is no word"),
        (lambda o: fill(o / "bad/---", 400), "class '---' has a name that is no word"),
        (same_class, "folders 'jane doe' and 'jane-doe' are one class, 'jane-doe'"),
        (lambda o: fill(o / "bad/good", 400), "class 'good' is on both sides"),
        (lambda o: shutil.copyfile(o / "good/3.png", o / "bad/joe/x.png"), "1 images are on both sides, e.g. .*3.png"),
        (broken, r"'joe' has 4 images that can be used \((?=.*2 unreadable)(?=.*1 missing file)(?=.*3 duplicate)"),
        (lambda o: noise(o / "bad/joe/a\nb.png", 1), r"the name 'a\\nb.png' cannot stand in a listing"),
        (lambda o: shutil.rmtree(o / "good"), "--legal ../good is no folder"),
    ],
)
def test_images_that_cannot_be_used_are_told_with_counts_and_nothing_is_written(
    project: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    before = written(project)
    spoil(project.parent)
    with pytest.raises(FreezeAsGuardError, match=said) as error:
        add()
    assert "\n" not in str(error.value) and written(project) == before


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"size_px": 7}, "size_px is 7, .* take a multiple of 32"),
        ({"size_px": 48}, "take a multiple of 32"),
        ({"size_px": 0}, "size_px is 0: must be above 0"),
        ({"model": "../good"}, "model folder ../good lacks unet"),
        ({"model": "someone/model"}, "give its --revision too"),
        ({"model": "someone/model", "revision": "main"}, "revision is 'main': must be a commit"),
        ({"model": "a;touch X", "revision": COMMIT}, "must be a hub id"),
        ({"revision": COMMIT}, "--revision is of a hub model"),
        ({"name": "portraits"}, "has a case 'portraits' already"),
        ({"name": "a;touch X"}, "is no name for a case"),
        ({"name": "x" * 41}, "40 at most"),
        ({"name": ""}, "is no name for a case"),
    ],
)
def test_a_name_size_or_model_that_does_not_fit_is_refused_and_nothing_is_written(
    project: Path, how: dict[str, Any], said: str
) -> None:
    before = written(project)
    with pytest.raises(FreezeAsGuardError, match=said):
        add(**how)
    assert written(project) == before


def test_what_is_left_out_is_counted_and_the_rest_is_added_with_its_comments(project: Path) -> None:
    path = Path("params.yaml")
    path.write_text(path.read_text().replace("cases:", "cases:  # my own comment"))
    noise(Path("../good/11.png"), 211)
    one_more("good/notes.txt", b"notes")(project.parent)
    one_more("good/torn.png", b"torn")(project.parent)
    shutil.copyfile("../good/0.png", "../good/again.png")
    added = add()
    assert added.n_images == {"illegal": 20, "legal": 11} and added.copy is None
    assert added.left_out == {"unreadable: no image": 1, "duplicate": 1, "no image by its name": 1}
    params = load_params()
    check_cells(params)
    assert params.cases["mine"].illegal == ["jane", "joe"] and "portraits" in params.cases
    assert "# my own comment" in path.read_text()


def test_only_drops_the_other_cases_and_keeps_an_edited_file(project: Path) -> None:
    assert add(only=True).copy is None  # the profile's own text was no edit
    assert list(load_params().cases) == ["mine"]
    path = Path("params.yaml")
    path.write_text(path.read_text() + "# mine\n")
    edited = path.read_bytes()
    said = (
        CliRunner()
        .invoke(
            cli, ["new-case", "other", "--illegal", "../bad", "--legal", "../good", "--only"], catch_exceptions=False
        )
        .output
    )
    assert "kept as params.yaml.bak" in said and Path("params.yaml.bak").read_bytes() == edited


@pytest.mark.parametrize("only", [True, False])
def test_users_of_a_full_size_model_train_as_the_papers(project: Path, only: bool) -> None:
    before = load_params()
    added = add(size_px=512, only=only)
    params = load_params()
    users = params.adapt_block("mine")
    assert (users.steps, users.lr, params.domains["mine"].size_px) == (2000, 1e-5, 512)
    if only:
        assert (params.generate.steps, params.generate.guidance_scale, params.adapt.batch_size) == (50, 7.5, 4)
        assert (params.relearn.steps, params.relearn.lr) == (2000, 1e-5) and added.miniature == []
    else:
        assert params.generate == before.generate and params.adapt_block("portraits") == before.adapt_block("portraits")
        assert f"generate.steps {before.generate.steps}" in added.miniature
    assert add("small").miniature == [] and load_params().cases["small"].adapt_lr is None


def test_a_folder_that_is_no_project_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.parent)
    with pytest.raises(FreezeAsGuardError, match="params.yaml is missing; .* change to the project's folder"):
        add_case("mine", {"illegal": Path("bad"), "legal": Path("good")}, "tiny-1.5", None, 64, False)
    Path("params.yaml").write_text("name: something else\n")
    with pytest.raises(FreezeAsGuardError, match="params.yaml: .*rho is missing"):
        add_case("mine", {"illegal": Path("bad"), "legal": Path("good")}, "tiny-1.5", None, 64, False)
    assert not Path("data").exists()
