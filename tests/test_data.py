"""Drawn figures, sources, and the split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from freezeasguard.data import split as split_module
from freezeasguard.data.crawl import crawl_domain
from freezeasguard.data.embedded.drawn_people import famous_figures, other_figures
from freezeasguard.data.split import (
    assign_sides,
    n_mask_learning,
    perceptual_hashes,
    read_split,
    rows_of_sides,
    split,
    split_domain,
)
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.settings.params import Domain
from freezeasguard.settings.resolve import SplitSettings
from freezeasguard.sides import PARTS


def test_pretraining_figures_are_others() -> None:
    famous = {f.identity for f in famous_figures()}
    names = {f.name for f in famous_figures()}
    for figure in other_figures(500):
        assert figure.name not in names
        assert all(sum(a != b for a, b in zip(figure.identity, other, strict=True)) >= 2 for other in famous)
    assert len(famous) == len(names) == 25


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    out = tmp_path_factory.mktemp("raw") / "portraits"
    return out, crawl_domain(
        Domain(source="embedded-figures", images_per_class=12), out, out.parent / "downloads", seed=0
    )


def _split(drawn: tuple[Path, pd.DataFrame], seed: int) -> pd.DataFrame:
    out, manifest = drawn
    hashes = perceptual_hashes([Image.open(out / p).convert("RGB") for p in manifest["path"]])
    return split(manifest, hashes, SplitSettings(seed=seed, mask_learning_images=100, held_out_images=2))


def test_manifest_has_licence_source_and_hash(drawn: tuple[Path, pd.DataFrame]) -> None:
    _, manifest = drawn
    assert len(manifest) == 25 * 12 and (manifest["status"] == "ok").all()
    assert manifest["licence"].str.contains("Pablo Stanley").all() and manifest["sha256"].is_unique
    assert (manifest["caption"].str.startswith("a photo of ")).all()


def test_split_is_disjoint_stable_and_sized(drawn: tuple[Path, pd.DataFrame]) -> None:
    table = _split(drawn, 0)
    for key in ("sha256", "group"):
        assert (table.groupby(key)["part"].nunique() == 1).all()
    pd.testing.assert_frame_equal(table, _split(drawn, 0))
    assert not table["part"].equals(_split(drawn, 1)["part"])
    sizes = table.groupby(["class", "part"]).size().unstack()
    assert (sizes["mask_learning"] >= 6).all() and (sizes["held_out"] >= 2).all() and (sizes["adaptation"] >= 1).all()


def test_near_duplicates_stay_in_one_part_and_never_cross_classes() -> None:
    table = pd.DataFrame({"path": [f"{i}" for i in range(24)], "class": ["a"] * 12 + ["b"] * 12})
    table["sha256"] = table["path"]
    hashes = [f"h{i // 3}" for i in range(12)] + ["h0"] + [f"g{i}" for i in range(11)]
    result = split(table, hashes, SplitSettings(seed=0, mask_learning_images=100, held_out_images=1))
    assert len(result) == 24 - 4  # h0 shows up in both classes: all four are left out
    assert (result.groupby("group")["part"].nunique() == 1).all()


def test_every_image_has_one_part() -> None:
    table = pd.DataFrame({"path": [f"{i}" for i in range(20)], "class": ["a"] * 10 + ["b"] * 10})
    table["sha256"] = table["path"]
    result = split(table, list(table["path"]), SplitSettings(seed=0, mask_learning_images=100, held_out_images=2))
    assert sorted(result["path"]) == sorted(table["path"])
    counts = result.groupby(["class", "part"]).size().unstack()
    assert counts["mask_learning"].tolist() == [5, 5] and counts["held_out"].tolist() == [2, 2]
    assert counts["adaptation"].tolist() == [3, 3]


@pytest.mark.parametrize("key", ["sha256", "group"])
def test_an_image_in_two_parts_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content, or one that looks like it: whatever deals the parts, the split is checked."""
    table = pd.DataFrame({"path": list("abcdef"), "class": "x", "sha256": list("abcdef")})
    hashes = list("abcdef")
    if key == "group":
        hashes[3] = hashes[2]
    else:
        table.loc[3, "sha256"] = table.loc[2, "sha256"]
    dealt = np.array(["mask_learning"] * 3 + ["adaptation"] * 2 + ["held_out"], dtype=object)
    monkeypatch.setattr(split_module, "split_class", lambda *_: dealt)
    with pytest.raises(FreezeAsGuardError, match=f"1 values of {key} lie in two parts"):
        split(table, hashes, SplitSettings(seed=0, mask_learning_images=100, held_out_images=1))


def test_near_duplicates_on_disk_share_a_part(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(10)] + ["0-again.png", "1-again.png"]
    for name in names:
        _save(tmp_path / "raw" / name, int(name[0]))
    table = pd.DataFrame({"path": names, "class": "a", "subject": "A", "caption": "a", "sha256": names})
    (tmp_path / "captioned").mkdir()
    table.to_csv(tmp_path / "captioned/captions.csv", index=False)
    for seed in range(4):
        settings = SplitSettings(seed=seed, mask_learning_images=100, held_out_images=2)
        split_domain(settings, tmp_path / "captioned", tmp_path / "raw", tmp_path / "split")
        part = read_split(tmp_path / "split").set_index("path")["part"]
        assert len(part) == 12 and part["0.png"] == part["0-again.png"] and part["1.png"] == part["1-again.png"]


def test_paper_counts() -> None:
    assert n_mask_learning(400, 100) == 100 and n_mask_learning(149, 100) == 74 and n_mask_learning(150, 100) == 100


def test_class_with_too_few_images_is_named() -> None:
    table = pd.DataFrame({"path": list("abc"), "class": "few", "sha256": list("abc")})
    with pytest.raises(FreezeAsGuardError, match="'few' has 3 images"):
        split(table, list("abc"), SplitSettings(seed=0, mask_learning_images=100, held_out_images=2))


def test_sides_are_seeded_and_disjoint() -> None:
    classes = [f"c{i}" for i in range(25)]
    sides = assign_sides(classes, 10, 10, 0)
    assert sorted(sides.values()) == ["illegal"] * 10 + ["legal"] * 10
    assert sides == assign_sides(classes[::-1], 10, 10, 0) != assign_sides(classes, 10, 10, 1)
    with pytest.raises(FreezeAsGuardError, match="the domain has 25"):
        assign_sides(classes, 20, 10, 0)


@pytest.mark.parametrize(("illegal", "legal"), [(["c"], ["a", "b"]), (["c"], 2), (1, ["a", "b"])])
def test_classes_are_on_the_side_that_names_them(illegal: int | list[str], legal: int | list[str]) -> None:
    given = {"c": "illegal", "a": "legal", "b": "legal"}
    assert assign_sides(["a", "b", "c"], illegal, legal, 0) == given
    swapped = assign_sides(["a", "b", "c"], illegal, legal, 0, roles="swapped")
    assert swapped == {"c": "legal", "a": "illegal", "b": "illegal"}


def test_drawn_sides_have_their_own_sizes_and_swap_whole() -> None:
    classes = [f"c{i}" for i in range(9)]
    given, swapped = (assign_sides(classes, 2, 5, 3, roles=roles) for roles in ("given", "swapped"))
    assert sorted(given.values()) == ["illegal"] * 2 + ["legal"] * 5
    assert given.keys() == swapped.keys() and all(given[name] != swapped[name] for name in given)


def _save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(path)


def test_folder_keeps_account_of_unreadable_and_repeated_images(tmp_path: Path) -> None:
    for i in range(3):
        _save(tmp_path / f"in/jane_doe/{i}.png", i)
    _save(tmp_path / "in/jane_doe/copy.png", 0)
    (tmp_path / "in/jane_doe/torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    manifest = crawl_domain(Domain(source="folder", path=tmp_path / "in"), tmp_path / "out", tmp_path / "downloads", 0)
    kinds = manifest["status"].str.replace(r" of .*", "", regex=True).value_counts().to_dict()
    assert kinds == {"ok": 3, "duplicate": 1, "unreadable: no image": 1}
    assert set(manifest["subject"]) == {"Jane Doe"}


@pytest.mark.parametrize("broken", ["missing", "empty", "empty-class", "unreadable"])
def test_bad_folders_leave_nothing_behind(tmp_path: Path, broken: str) -> None:
    root = tmp_path / "in"
    if broken != "missing":
        root.mkdir()
    if broken in ("empty-class", "unreadable"):
        (root / "someone").mkdir()
    if broken == "unreadable":
        (root / "someone/a.png").write_text("no image")
    with pytest.raises(FreezeAsGuardError, match=str(root)):
        crawl_domain(Domain(source="folder", path=root), tmp_path / "out", tmp_path / "downloads", 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ([] if broken == "missing" else ["in"])


def test_other_classes_stand_for_the_legal_side_while_masks_are_learned() -> None:
    """METHOD, reading 10: logos while masks are learned, the legal class's own images for its user."""
    rows = [(name, part) for name in ("faces", "legal", "logos", "none") for part in PARTS]
    table = pd.DataFrame(rows, columns=["class", "part"])
    sides = {"faces": "illegal", "legal": "legal"}

    def found(stand_in: list[str]) -> set[tuple[str, str, str]]:
        return set(rows_of_sides(table, sides, stand_in)[["class", "part", "side"]].itertuples(index=False, name=None))

    own = {(name, part, side) for name, side in sides.items() for part in PARTS}
    assert found([]) == own
    learning = ("mask_learning", "legal")
    assert found(["logos"]) == own - {("legal", *learning)} | {("logos", *learning)}
    assert found(["legal", "logos"]) == own | {("logos", *learning)}
    with pytest.raises(FreezeAsGuardError, match="learn_legal: no class is called 'nobody'"):
        found(["nobody"])
    with pytest.raises(FreezeAsGuardError, match="learn_legal names the class 'faces', which is illegal"):
        found(["faces"])
