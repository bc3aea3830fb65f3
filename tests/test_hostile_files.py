"""Archives, listings, class names and images of strangers: read, or refused in one line; nothing is left outside."""

from __future__ import annotations

import io
import json
import random
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from freezeasguard.data.clean import FORMATS, decode
from freezeasguard.data.crawl import crawl_domain
from freezeasguard.data.download import unpack_zip
from freezeasguard.data.manifest import read_manifest
from freezeasguard.data.names import is_class_name
from freezeasguard.data.sources.base import Item
from freezeasguard.data.sources.registry import SOURCES, Source
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.settings.params import Archive, Crawl, Domain, Hub
from loopback import jpeg

# --- zips -----------------------------------------------------------------------------------------

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def replaced(old: bytes, new: bytes, content: bytes) -> bytes:
    assert old in content and len(old) == len(new)
    return content.replace(old, new)


FLAGS, METHOD = 6, 8


def headed(offset: int, value: int) -> bytes:
    """A zip of one entry, with a byte of its own header set, and of the directory's, which lies two bytes on."""
    content = bytearray(zipped(("a/1.jpg", b"x" * 100)))
    for start in (content.index(b"PK\3\4") + offset, content.index(b"PK\1\2") + offset + 2):
        content[start] = value
    return bytes(content)


def entry_of_kind(kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("a/1.jpg")
    info.external_attr = (kind | 0o777) << 16
    return info


def zip64_lie() -> bytes:
    """An entry that claims 2**62 bytes in its zip64 field."""
    info = zipfile.ZipInfo("a/1.jpg")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open(info, "w", force_zip64=True) as entry:
        entry.write(b"x" * 100)
    content = bytearray(buffer.getvalue())
    start = content.index(b"PK\1\2")
    content[start + 24 : start + 28] = b"\xff" * 4  # see the extra field, it says,
    extra = struct.pack("<HHQ", 1, 8, 2**62)
    content[start + 30 : start + 32] = struct.pack("<H", len(extra))
    content[start + 46 + 7 : start + 46 + 7] = extra
    end = content.index(b"PK\5\6")
    content[end + 12 : end + 16] = struct.pack("<L", end - start)
    return bytes(content)


def corrupt(method: int) -> bytes:
    content = bytearray(zipped(("a/1.jpg", random.Random(0).randbytes(3000)), method=method))
    content[500:600] = bytes(100)
    return bytes(content)


GOOD = zipped(("a/1.jpg", jpeg(1)), ("a/2.jpg", jpeg(2)))
BAD_ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty file": (lambda: b"", "no readable zip"),
    "a text": (lambda: b"not a zip", "no readable zip"),
    "truncated": (lambda: GOOD[:-30], "no readable zip"),
    "without its start": (lambda: GOOD[300:], "no readable zip"),
    "encrypted": (lambda: headed(FLAGS, 1), "'a/1.jpg' is encrypted; unpack it yourself"),
    "patched data": (lambda: headed(FLAGS, 0x20), "no readable zip"),
    "strong encryption": (lambda: headed(FLAGS, 0x41), "is encrypted"),
    **{f"corrupt, method {method}": (lambda m=method: corrupt(m), "no readable zip") for method in METHODS},
    "wrong CRC": (
        lambda: replaced(b"x" * 99 + b"y", b"x" * 100, zipped(("a/1.jpg", b"x" * 99 + b"y"), method=0)),
        "Bad CRC",
    ),
    "unknown method": (lambda: headed(METHOD, 99), "no readable zip"),
    "zip64 lie": (zip64_lie, "would unpack to more than"),
    "symbolic link": (lambda: zipped((entry_of_kind(stat.S_IFLNK), b"/etc/passwd")), "unsafe entry 'a/1.jpg'"),
    "the same name twice": (
        lambda: replaced(b"a/2.jpg", b"a/1.jpg", GOOD),
        "holds 'a/1.jpg' twice",
    ),
    "the same place twice": (lambda: zipped(("a/1.jpg", b""), ("a\\1.jpg", b"")), "twice"),
    "file and folder": (lambda: zipped(("a", b"x"), ("a/1.jpg", b"x")), "holds 'a' as file and folder"),
    "NUL in a name": (lambda: replaced(b"a/2.jpg", b"a/2\0jpg", GOOD), "unsafe entry"),
    "name without a file": (lambda: zipped(("./", b""), (".", b"x")), "unsafe entry"),
    "long name": (lambda: zipped(("a/" + "b" * 300, b"x")), "unsafe entry"),
    "deep name": (lambda: zipped(("a/" * 600 + "b", b"x")), "unsafe entry"),
    "name of no encoding": (
        lambda: replaced("é.jpg".encode(), b"\xff\xfe.jpg", zipped(("é.jpg", b"x"))),
        "no readable zip",
    ),
    "up": (lambda: zipped(("a/../../b.jpg", b"x")), "unsafe entry"),
    "absolute": (lambda: zipped(("/b.jpg", b"x")), "unsafe entry"),
}


@pytest.mark.parametrize("kind", BAD_ZIPS)
def test_a_zip_is_unpacked_whole_or_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    content, reason = BAD_ZIPS[kind]
    path = tmp_path / "a.zip"
    path.write_bytes(content())
    domain = Domain(source="archive", archive=Archive(path=path))
    with pytest.raises(FreezeAsGuardError) as refused:
        crawl_domain(domain, tmp_path / "raw", tmp_path / "d", 0)
    assert reason in str(refused.value) and str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert {p.name for p in tmp_path.rglob("*")} <= {"a.zip", "d"}


def test_special_files_and_folders_of_a_zip_become_plain_ones(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(("b/", b""), ("b\\", b""), (entry_of_kind(stat.S_IFIFO), b"x")))
    unpack_zip(tmp_path / "a.zip", tmp_path / "out", max_bytes=100)
    assert (tmp_path / "out/a/1.jpg").read_bytes() == b"x"


def test_two_classes_of_one_folder_are_refused() -> None:
    asked = {"urls": ["http://h/a.jpg"]}
    with pytest.raises(ValidationError, match="'Jane Doe' and 'jane-doe' would be one folder, 'jane-doe'"):
        Crawl.model_validate({"engine": "url-list", "classes": {"Jane Doe": asked, "jane-doe": asked}})


def test_what_is_no_image_by_its_name_keeps_its_row(tmp_path: Path) -> None:
    folder = tmp_path / "own/ann"
    (folder / "more").mkdir(parents=True)
    Image.new("RGB", (80, 80)).save(folder / "a.png")
    for name in ("b.gif", "notes", ".DS_Store"):
        (folder / name).write_bytes(b"x")
    manifest = crawl_domain(Domain(source="folder", path=tmp_path / "own"), tmp_path / "raw", tmp_path / "d", 0)
    expected = ["ok", "refused: a file .gif", "refused: a folder", "refused: a file"]
    assert manifest["status"].tolist() == expected


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 4), cut=st.booleans())
def test_damaged_zips_leave_nothing(seed: int, changes: int, cut: bool) -> None:
    chance = random.Random(seed)
    content = bytearray(zipped(("a/1", b"hello" * 40), ("a/2", b"world" * 40), method=chance.choice(METHODS)))
    for _ in range(changes):
        content[chance.randrange(len(content))] = chance.choice((0, 1, 127, 128, 255))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.zip").write_bytes(content[: chance.randrange(len(content))] if cut else content)
        try:
            unpack_zip(folder / "a.zip", folder / "out", max_bytes=10**6)
        except FreezeAsGuardError as error:
            assert "\n" not in str(error) and not (folder / "out").exists()
        assert {p.name for p in folder.iterdir()} <= {"a.zip", "out"}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.sampled_from("a./\\é:~ \n"), min_size=1, max_size=8), min_size=1, max_size=3, unique=True))
def test_no_name_of_a_zip_leads_out(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "in/side"
        folder.mkdir(parents=True)
        try:
            (folder / "a.zip").write_bytes(zipped(*((n, b"x") for n in names)))
            unpack_zip(folder / "a.zip", folder / "out", max_bytes=10**6)
        except FreezeAsGuardError as error:
            assert "\n" not in str(error)
        assert {p.name for p in folder.iterdir()} <= {"a.zip", "out"}
        assert {str(p.relative_to(name)) for p in Path(name).glob("*/*")} == {"in/side"}


# --- listings and rows that name files ------------------------------------------------------------


@pytest.mark.parametrize("listing", ["captions.csv", "metadata.jsonl"])
def test_a_listing_inside_an_archive_names_files_inside_it_alone(listing: str, tmp_path: Path) -> None:
    own = tmp_path / "own.jpg"
    own.write_bytes(jpeg(7))
    names = ["1.jpg", "../other/2.jpg", str(own), "../../../own.jpg", "../../" * 9 + str(own)[1:], "\0", "", "x" * 5000]
    rows = [{"path": name, "class": "ann", "caption": "c"} for name in names]
    content = "\n".join(map(json.dumps, rows)).encode()
    if listing.endswith(".csv"):
        content = "\n".join(["path,class,caption", *(f'"{name}",ann,c' for name in names)]).encode()
    path = tmp_path / "a.zip"
    path.write_bytes(zipped((f"set/{listing}", content), ("set/1.jpg", jpeg(1)), ("other/2.jpg", jpeg(2))))
    manifest = crawl_domain(Domain(source="archive", archive=Archive(path=path)), tmp_path / "raw", tmp_path / "d", 0)
    assert manifest["status"].tolist()[:2] == ["ok", "ok"]
    assert manifest["status"].tolist()[2:5] == ["refused: a file outside the archive"] * 3
    assert set(manifest["status"][5:]) == {"missing file"}
    # A user's own listing may name any file.
    (tmp_path / "own.csv").write_text(f"path,class\n{own},ann\n")
    mine = crawl_domain(Domain(source="folder", path=tmp_path / "own.csv"), tmp_path / "raw2", tmp_path / "d2", 0)
    assert mine["status"].tolist() == ["ok"]


def test_rows_of_a_data_set_name_files_of_their_own_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(tmp_path / "cache/downloads"))
    own, repo = tmp_path / "own.jpg", tmp_path / "repo"
    repo.mkdir()
    own.write_bytes(jpeg(7))
    for name in ("1.jpg", "none.jpg"):
        (repo / name).write_bytes(jpeg(1))
    paths = [str(own), f"{repo}/../own.jpg", str(repo / "1.jpg"), str(repo / "none.jpg")]
    images: list[Any] = [*({"bytes": None, "path": path} for path in paths), {"bytes": jpeg(2), "path": "x"}, None]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(str(repo / "a.parquet"))
    (repo / "none.jpg").unlink()
    (repo / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: a.parquet\n---\n"
    )
    domain = Domain(source="hf", hf=Hub(repo=str(repo), class_name="x"))
    manifest = crawl_domain(domain, tmp_path / "raw", tmp_path / "d", 0)
    outside = "refused: a file outside the data set"
    assert manifest["status"].tolist() == [
        outside,
        outside,
        "ok",
        "unreadable: FileNotFoundError",
        "ok",
        "missing file",
    ]


# --- class names ----------------------------------------------------------------------------------

NAMES = ["../../escape", "/abs", "a/b", "a\\b", "", ".", "..", ".hidden", "a\nb", "a\0b", "-rf", "$x"]
NAMES += ["x" * 101, "李" * 70]


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_would_be_a_path_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="must be a class's name"):
        Crawl.model_validate({"engine": "url-list", "classes": {name: {"urls": ["http://h/a.jpg"]}}})

    def items(*_: Any) -> list[Item]:
        image = Image.new("RGB", (80, 80))
        return [Item(name, "X", image, "own", "CC0"), Item("fine", "Fine", image, "own", "CC0")]

    monkeypatch.setitem(SOURCES, "own", Source("freezeasguard.data.sources.figures"))
    monkeypatch.setattr("freezeasguard.data.sources.figures.items", items)
    manifest = crawl_domain(Domain(source="own"), tmp_path / "raw", tmp_path / "d", 0)
    assert manifest["status"].tolist() == [f"refused: class name {name[:100]!r}", "ok"]
    assert {p.name for p in (tmp_path / "raw/images").iterdir()} == {"fine"} and len(list(tmp_path.iterdir())) == 1
    assert len(read_manifest(tmp_path / "raw")) == 2


@pytest.mark.parametrize("name", ["mira-tovena", "Mira Tovena", "O'Brien, J.", "李小龍", "person_01", "é" * 100])
def test_a_class_may_be_called_as_people_are(name: str) -> None:
    assert is_class_name(name)
    Crawl.model_validate({"engine": "url-list", "classes": {name: {"urls": [" http://h/a.jpg\n"]}}})


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters() | st.sampled_from("./\\-_ ,'aé"), max_size=120))
def test_a_name_that_is_accepted_is_one_folder(name: str) -> None:
    if is_class_name(name):
        with tempfile.TemporaryDirectory() as root:
            (Path(root) / name).mkdir()
            assert [p.name for p in Path(root).iterdir()] == [name]


# --- images ---------------------------------------------------------------------------------------

REFUSED = ("EPS", "AVIF", "ICO", "PCX", "JPEG2000", "ICNS", "SGI", "DDS")


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 50).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def start_of_photoshop() -> bytes:
    return b"8BPS\0\1" + bytes(6) + struct.pack(">HLLHH", 3, 64, 64, 8, 3) + bytes(100)


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_that_are_read(kind: str) -> None:
    image, status = decode(encoded(kind), 10**6)
    assert status == "ok" and image is not None and image.size == (64, 64)


@pytest.mark.parametrize("kind", REFUSED)
def test_other_formats_reach_no_decoder(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "AVIF":
        pytest.importorskip("PIL._avif")
    content = encoded(kind)
    for name, (_, accepts) in list(Image.OPEN.items()):
        if name not in FORMATS:
            monkeypatch.setitem(Image.OPEN, name, (lambda *_: 1 / 0, accepts))
    for damaged in (content, content[:40] + bytes(60), content[: len(content) // 2]):
        assert decode(damaged, 10**6) == (None, f"refused: format {kind}")


def test_a_folder_of_disguised_and_broken_images_keeps_the_good_one(tmp_path: Path) -> None:
    folder = tmp_path / "in/ann"
    (folder / "folder.jpg").mkdir(parents=True)
    contents = {"eps": encoded("EPS"), "psd": start_of_photoshop(), "html": b"<html>", "empty": b""}
    contents |= {"avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(40), "cut": jpeg(1)[:500], "good": jpeg(2)}
    for name, content in contents.items():
        (folder / f"{name}.jpg").write_bytes(content)
    (folder / "gone.jpg").symlink_to("nowhere")
    manifest = crawl_domain(Domain(source="folder", path=tmp_path / "in"), tmp_path / "raw", tmp_path / "d", 0)
    found = {Path(s).stem: status for s, status in zip(manifest["source"], manifest["status"], strict=True)}
    assert found.pop("cut").startswith("unreadable: ")
    assert found == {
        "eps": "refused: format EPS",
        "psd": "refused: format PSD",
        "avif": "refused: format AVIF",
        "html": "unreadable: no image",
        "empty": "unreadable: no image",
        "folder": "unreadable: IsADirectoryError",
        "gone": "unreadable: FileNotFoundError",
        "good": "ok",
    }


def test_a_file_name_that_is_no_text_stays_in_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "in/ann").mkdir(parents=True)
    with open(bytes(tmp_path / "in/ann") + b"/\xe9.jpg", "wb") as file:
        file.write(jpeg(1))
    crawl_domain(Domain(source="folder", path=tmp_path / "in"), tmp_path / "raw", tmp_path / "d", 0)
    assert read_manifest(tmp_path / "raw")["source"][0].endswith(r"\udce9.jpg")


@pytest.mark.filterwarnings("ignore")  # Pillow has much to say
@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(FORMATS), seed=st.integers(0, 2**32))
def test_damaged_images_become_a_reason(kind: str, seed: int) -> None:
    chance = random.Random(seed)
    content = bytearray(encoded(kind))
    for _ in range(chance.randrange(1, 20)):
        content[chance.randrange(min(len(content), chance.choice((64, 10**6))))] = chance.randrange(256)
    image, status = decode(bytes(content), 10**5)
    assert (image is None) == (status != "ok") and "\n" not in status
