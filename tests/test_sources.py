"""Sources against real parts on this machine: icrawler, `datasets`, zip archives, OpenCV."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
import yaml
from PIL import Image

from freezeasguard.data.clean import Cleaner, near_duplicates, perceptual_hash, square
from freezeasguard.data.crawl import crawl_domain
from freezeasguard.data.download import Deadline, DownloadLog, Ended, Limits, fetch, resolve, unpack_zip
from freezeasguard.data.sources.registry import SOURCES, Source
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.params import Archive, Clean, Crawl, Domain, Hub, Query, parse_params
from freezeasguard.settings.profiles import profile_text
from loopback import jpeg, serve


@pytest.fixture
def web() -> Iterator[tuple[str, Any]]:
    with serve() as served:
        yield served


def web_domain(address: str, **overrides: Any) -> Domain:
    settings: dict[str, Any] = {
        "engine": "page",
        "search_url": address + "/search?q={query}&p={page}",
        "classes": {"mira": Query(query="mira", images=50, subject="Mira T")},
        "timeout_s": 1.5,
        "max_bytes": 1_000_000,
        "allow_private": True,
    }
    clean = Clean(near_duplicate_bits=6, min_side_px=64, max_pixels=10_000_000)
    return Domain(source="crawl", crawl=Crawl(**{**settings, **overrides}), clean=clean, size_px=64)


def statuses(manifest: pd.DataFrame) -> dict[str, str]:
    public = manifest[~manifest["source"].str.contains("/private/")]
    return {
        source.rsplit("/", 1)[-1]: status for source, status in zip(public["source"], public["status"], strict=True)
    }


def test_a_result_page_brings_good_images_and_a_reason_for_every_other(tmp_path: Path, web: Any) -> None:
    address, hits = web
    manifest = crawl_domain(web_domain(address), tmp_path / "raw", tmp_path / "downloads", 0)
    found = statuses(manifest)
    assert [found[f"{i}.jpg"] for i in (2, 3, 4, 5)] == ["ok"] * 4
    assert found["redirect.jpg"] == "ok" and found["missing.jpg"] == "http 404"
    assert found["html.jpg"] == "unreadable: no image" and found["truncated.jpg"].startswith("unreadable")
    assert found["slow.jpg"].startswith("timeout") and found["endless.jpg"].startswith("too large: over")
    assert found["big.png"] == "too large: 6000x5000 pixels" and found["loop.jpg"].startswith("refused: over")
    assert found["passwd"] == "refused: file scheme"
    # Byte for byte, and to the eye: one of each pair stays.
    exact, looks = sorted([found["0.jpg"], found["copy.jpg"]]), sorted([found["1.jpg"], found["almost.jpg"]])
    assert exact[1] == "ok" and exact[0].startswith("duplicate of images/mira/")
    assert looks[1] == "ok" and looks[0].startswith("near-duplicate of images/mira/")
    private = manifest[manifest["source"].str.contains("/private/")]["status"].tolist()
    assert private == ["refused: robots.txt"] and hits["/private/1.jpg"] == 0
    kept = manifest[manifest["status"] == "ok"]
    assert (
        (kept["subject"] == "Mira T").all() and (kept["width"] == 96).all() and kept["time"].str.startswith("20").all()
    )
    assert all(Image.open(tmp_path / "raw" / path).size == (64, 64) for path in kept["path"])
    assert set(kept["robots"]) == {"allowed"}


def test_almost_equal_images_are_one(tmp_path: Path, web: Any) -> None:
    address, _ = web
    urls = [f"{address}/good/1.jpg", f"{address}/almost.jpg", f"{address}/good/2.jpg"]
    domain = web_domain(address, engine="url-list", classes={"a": Query(urls=urls[:1]), "b": Query(urls=urls[1:])})
    manifest = crawl_domain(domain, tmp_path / "raw", tmp_path / "downloads", 0)
    by_url = dict(zip(manifest["source"], manifest["status"], strict=True))
    assert by_url[urls[0]] == by_url[urls[2]] == "ok"
    assert by_url[urls[1]].startswith("near-duplicate of images/a/")  # across classes


def test_a_rerun_fetches_only_what_may_have_changed(tmp_path: Path, web: Any) -> None:
    address, hits = web
    domain = web_domain(address)
    first = crawl_domain(domain, tmp_path / "raw", tmp_path / "downloads", 0)
    files = {p: p.read_bytes() for p in sorted((tmp_path / "raw/images").rglob("*.png"))}
    hits.clear()
    second = crawl_domain(domain, tmp_path / "raw", tmp_path / "downloads", 0)
    fetched = {path for path in hits if path not in ("/search", "/robots.txt")}
    assert fetched == {"/slow.jpg"}  # a timeout may be cured by another try, a 404 is final
    assert {p: p.read_bytes() for p in sorted((tmp_path / "raw/images").rglob("*.png"))} == files
    same = ["path", "class", "source", "sha256", "status"]
    pd.testing.assert_frame_equal(first[same], second[same])


def test_a_killed_crawl_goes_on(tmp_path: Path, web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    address, hits = web
    urls = [f"{address}/good/{i}.jpg" for i in range(8)]
    domain = web_domain(address, engine="url-list", classes={"a": Query(urls=urls)}, threads=1)
    crawl_domain(domain, tmp_path / "raw", tmp_path / "downloads", 0)
    log = tmp_path / "downloads/log.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:3], lines[3][:20]]))  # as a kill in the middle of a line leaves it
    hits.clear()
    manifest = crawl_domain(domain, tmp_path / "raw", tmp_path / "downloads", 0)
    assert len(manifest) == 8 and (manifest["status"] == "ok").all()
    assert sum(n for path, n in hits.items() if path.startswith("/good/")) == 5


def result_page(engine: str, urls: list[str]) -> bytes:
    """What the engine answers, with images at these addresses."""
    pages = {
        "page": "".join(f'<img src="{u}">' for u in urls),
        "google": "<script>" + ",".join(f'["{u}",80,96]' for u in urls) + "</script>",
        "bing": "".join(f'<div class="imgpt"><a m="{{&quot;murl&quot;:&quot;{u}&quot;}}"></a></div>' for u in urls),
        "baidu": json.dumps({"data": [{"hoverURL": u} for u in urls]}),
    }
    return pages[engine].encode()


def engine_domain(engine: str, address: str, monkeypatch: pytest.MonkeyPatch, **overrides: Any) -> Domain:
    """Of an engine whose result page is turned to this machine; parsers and queues are icrawler's own."""
    from icrawler.builtin import baidu, bing, google

    feeders = {"google": google.GoogleFeeder, "bing": bing.BingFeeder, "baidu": baidu.BaiduFeeder}

    def feed(self: Any, *_: Any, **__: Any) -> None:
        self.out_queue.put(f"{address}/results")

    if engine in feeders:
        monkeypatch.setattr(feeders[engine], "feed", feed)
    query = {"someone": Query(query="someone", images=2)}
    search_url = f"{address}/results?q={{query}}" if engine == "page" else None
    return web_domain(address, engine=engine, classes=query, search_url=search_url, **overrides)


@pytest.mark.parametrize("engine", ["google", "bing", "baidu"])
def test_engines_of_icrawler_use_our_downloader(
    engine: str, tmp_path: Path, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = web
    urls = [f"{address}/good/{i}.jpg" for i in (10, 11, 12)]
    with serve({"/results": result_page(engine, urls)}) as (results, _):
        domain = engine_domain(engine, results, monkeypatch)
        manifest = crawl_domain(domain, tmp_path / "raw", tmp_path / "downloads", 0)
    assert (manifest["status"] == "ok").all() and 1 <= len(manifest) <= 3


@pytest.mark.parametrize("engine", ["page", "google"])
def test_result_pages_keep_to_the_limits(
    engine: str, tmp_path: Path, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, hits = web
    page = result_page(engine, [f"{address}/good/10.jpg", f"{address}/good/11.jpg"])
    for size, brought in ((40_000, True), (40_001, False)):
        with serve({"/results": page.ljust(size)}) as (results, asked):
            domain = engine_domain(engine, results, monkeypatch, max_bytes=40_000)
            out = tmp_path / f"{size}"
            if brought:
                assert len(crawl_domain(domain, out / "raw", out / "downloads", 0)) == 2
                hits.clear()
                continue
            with pytest.raises(FreezeAsGuardError, match="brought no image"):
                crawl_domain(domain, out / "raw", out / "downloads", 0)
            assert asked["/results"] and not hits


def test_malformed_addresses_cost_a_page_nothing_else(
    tmp_path: Path, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = web
    bad = ["http://[bad/a.jpg", "http://x:99999/b.jpg", "http://[", "http://:80/c.jpg", "http://x:y/d.jpg"]
    bad += ["http://[::1]x/e.jpg", "http://a..b/f.jpg", "http://h\\@x/h.jpg"]
    with serve({"/results": result_page("page", [*bad, f"{address}/good/10.jpg"])}) as (results, _):
        domain = engine_domain("page", results, monkeypatch, threads=1)
        manifest = crawl_domain(domain, tmp_path / "raw", tmp_path / "downloads", 0)
    found = dict(zip(manifest["source"], manifest["status"], strict=True))
    assert found.pop(f"{address}/good/10.jpg") == "ok" and found.keys() == set(bad)
    assert found.pop("http://h\\@x/h.jpg") == "refused: user name in the address"
    assert set(found.values()) == {"refused: malformed address"}


@pytest.mark.parametrize("engine", ["page", "url-list"])
def test_a_crawl_keeps_off_private_addresses(engine: str, tmp_path: Path, web: Any) -> None:
    address, hits = web
    query = {"a": Query(query="a", urls=[f"{address}/good/1.jpg"])}
    domain = web_domain(address, engine=engine, classes=query, allow_private=False)
    with pytest.raises(FreezeAsGuardError, match="brought no image"):
        crawl_domain(domain, tmp_path / "raw", tmp_path / "downloads", 0)
    assert not hits


def test_an_engine_that_brings_nothing_says_so(tmp_path: Path, web: Any) -> None:
    address, _ = web
    domain = web_domain(address, search_url=address + "/nothing?q={query}")
    with pytest.raises(FreezeAsGuardError, match="the engine page brought no image"):
        crawl_domain(domain, tmp_path / "raw", tmp_path / "downloads", 0)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.org/a", "refused: ftp scheme"),
        ("file:///etc/passwd", "refused: file scheme"),
        ("http://127.0.0.1/a", "refused: private address"),
        ("http://[::1]/a", "refused: private address"),
        ("http://10.1.2.3/a", "refused: private address"),
        ("http://169.254.169.254/meta", "refused: private address"),
        ("http://[::ffff:10.1.2.3]/a", "refused: private address"),
        ("http://[bad/a", "refused: malformed address"),
        ("http://example.org:99999/a", "refused: malformed address"),
        (f"http://{'a' * 64}.example/a", "refused: malformed address"),
    ],
)
def test_addresses_that_are_refused(url: str, reason: str) -> None:
    with pytest.raises(Ended, match=f"^{reason}$"):
        resolve(url, False, Deadline(5))


def test_a_redirect_on_this_machine_is_followed_or_refused(web: Any) -> None:
    address, _ = web
    assert fetch(requests.Session(), f"{address}/redirect.jpg", Limits(10**6, 5, allow_private=True)).status == "ok"
    outcome = fetch(requests.Session(), f"{address}/redirect.jpg", Limits(10**6, 5))
    assert outcome.status == "refused: private address" and outcome.content is None


def test_a_file_that_vanished_is_fetched_again(tmp_path: Path) -> None:
    log = DownloadLog(tmp_path / "log.jsonl")
    assert not log.is_done("a", "http://x/1")


# --- archives -----------------------------------------------------------------------------------


def zipped(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def faces_zip() -> bytes:
    people = {
        f"FF25/{name}/{i}.jpg": jpeg(20 * n + i) for n, name in enumerate(("ann_lee", "bo_ray")) for i in range(3)
    }
    return zipped(people)


def test_archive_by_url_is_fetched_once_checked_and_unpacked(tmp_path: Path) -> None:
    content = faces_zip()
    digest = hashlib.sha256(content).hexdigest()
    with serve({"/ff25.zip": content}) as (address, hits):
        config = Archive(url=f"{address}/ff25.zip", sha256=digest, allow_private=True)
        domain = Domain(source="archive", archive=config)
        manifest, _ = (crawl_domain(domain, tmp_path / "raw", tmp_path / "downloads", 0) for _ in range(2))
        assert hits["/ff25.zip"] == 1
        assert set(manifest["subject"]) == {"Ann Lee", "Bo Ray"} and (manifest["status"] == "ok").sum() == 6
        wrong = Domain(source="archive", archive=config.model_copy(update={"sha256": "0" * 64}))
        with pytest.raises(FreezeAsGuardError, match="has sha256"):
            crawl_domain(wrong, tmp_path / "raw2", tmp_path / "downloads", 0)


def test_archive_with_a_listing_uses_its_captions(tmp_path: Path) -> None:
    lines = [json.dumps({"path": "x/1.jpg", "class": "ann", "caption": "a photo of Ann"})]
    path = tmp_path / "a.zip"
    path.write_bytes(zipped({"set/metadata.jsonl": "\n".join(lines).encode(), "set/x/1.jpg": jpeg(3)}))
    manifest = crawl_domain(Domain(source="archive", archive=Archive(path=path)), tmp_path / "raw", tmp_path / "d", 0)
    assert manifest["caption"].tolist() == ["a photo of Ann"]


@pytest.mark.parametrize("within", ["", "train", "test"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_the_authors_archive_and_other_imagefolders_load(within: str, suffix: str, tmp_path: Path) -> None:
    """ff25/{train,test}/NAME/*.png with metadata of file_name, text and name: one for all, or one a half."""
    files, rows = {}, {}
    halves = ("train", "test")
    for number, (half, who) in enumerate((h, w) for h in halves for w in ("Ann Lee", "Bo Ray")):
        name, folder = f"{who.replace(' ', '_')}/{number}.png", f"ff25/{half}" if within else "ff25"
        files[f"ff25/{half}/{name}"] = jpeg(10 * number)
        listed = name if within else f"{half}/{name}"
        rows.setdefault(folder, []).append({"file_name": listed, "text": f"a photo of {who}", "name": who})
    for folder, listed in rows.items():
        if within == "test":
            listed = [{key: row[key] for key in ("file_name", "text")} for row in listed]  # the folder says who it is
        table = pd.DataFrame(listed)
        text = table.to_csv(index=False) if suffix == "csv" else table.to_json(orient="records", lines=True)
        files[f"{folder}/metadata.{suffix}"] = text.encode()
    path = tmp_path / "ff25.zip"
    path.write_bytes(zipped(files))
    manifest = crawl_domain(Domain(source="archive", archive=Archive(path=path)), tmp_path / "raw", tmp_path / "d", 0)
    assert manifest["status"].tolist() == ["ok"] * 4
    assert sorted(manifest["class"]) == ["ann-lee", "ann-lee", "bo-ray", "bo-ray"]
    assert set(manifest["subject"]) == {"Ann Lee", "Bo Ray"}
    assert (manifest["caption"] == "a photo of " + manifest["subject"]).all()


@pytest.mark.parametrize("name", ["../evil.jpg", "/abs.jpg", "a/../../evil.jpg", "..\\evil.jpg"])
def test_path_traversal_is_refused_and_nothing_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.zip"
    path.write_bytes(zipped({"ok/1.jpg": jpeg(1), name: b"x"}))
    with pytest.raises(FreezeAsGuardError, match="unsafe entry"):
        unpack_zip(path, tmp_path / "out", max_bytes=10**6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.zip"]


def test_zip_bombs_and_broken_zips_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    path.write_bytes(zipped({"zeros.png": bytes(5_000_000)}))
    assert path.stat().st_size < 10_000
    with pytest.raises(FreezeAsGuardError, match="would unpack to more than"):
        unpack_zip(path, tmp_path / "out", max_bytes=1_000_000)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(FreezeAsGuardError, match="no readable zip"):
        unpack_zip(path, tmp_path / "out", max_bytes=10**9)
    assert not (tmp_path / "out").exists()


def test_a_zip_of_too_many_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    path.write_bytes(zipped({f"{i}.txt": b"x" for i in range(3)}))
    with pytest.raises(FreezeAsGuardError, match="or 2 files"):
        unpack_zip(path, tmp_path / "out", max_bytes=10**6, max_files=2)
    assert not (tmp_path / "out").exists()
    unpack_zip(path, tmp_path / "out", max_bytes=10**6, max_files=3)
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "link.zip"
    link = zipfile.ZipInfo("set/1.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(FreezeAsGuardError, match="unsafe entry 'set/1.jpg'"):
        unpack_zip(path, tmp_path / "out", max_bytes=10**6)
    assert not (tmp_path / "out").exists()


def test_a_zip_that_understates_its_sizes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lie.zip"
    honest = zipped({"zeros.png": bytes(5_000_000)})
    assert honest.count(struct.pack("<L", 5_000_000)) == 2  # the entry's own header, and the directory
    path.write_bytes(honest.replace(struct.pack("<L", 5_000_000), struct.pack("<L", 10)))
    with pytest.raises(FreezeAsGuardError, match="no readable zip"):  # Python reads what is declared: a wrong CRC
        unpack_zip(path, tmp_path / "out", max_bytes=1000)
    # A reader that goes on beyond the declared size, as decompressors may: the bytes are counted as they come.
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: io.BytesIO(bytes(5_000_000)))
    with pytest.raises(FreezeAsGuardError, match="unpacks to more than it claims"):
        unpack_zip(path, tmp_path / "out", max_bytes=1000)
    assert not (tmp_path / "out").exists()


def test_an_archive_source_keeps_to_its_limits(tmp_path: Path) -> None:
    content = faces_zip()
    (tmp_path / "a.zip").write_bytes(content)
    with serve({"/a.zip": content}) as (address, hits):
        by_url = {"url": f"{address}/a.zip", "sha256": hashlib.sha256(content).hexdigest()}
        for config, reason in (
            ({"path": tmp_path / "a.zip", "max_unpacked_bytes": 1000}, "would unpack to more than 1000 bytes"),
            ({**by_url, "allow_private": True, "max_bytes": 1000}, "too large: over 1000 bytes"),
            (by_url, "refused: private address"),
        ):
            hits.clear()
            domain = Domain(source="archive", archive=Archive.model_validate(config))
            with pytest.raises(FreezeAsGuardError, match=reason):
                crawl_domain(domain, tmp_path / "raw", tmp_path / "downloads", 0)
            assert not (tmp_path / "raw").exists()
        assert not hits


# --- a source of one's own ------------------------------------------------------------------------

OWN_SOURCE = """
from freezeasguard.data.sources.base import Item
from PIL import Image

def items(domain, downloads, seed):
    for i in range(domain.images_per_class):
        yield Item("dots", "Dots", Image.new("RGB", (80, 80), (seed, i, 0)), f"{domain.path}#{i}", "CC0", f"dot {i}")
"""


def test_a_source_of_ones_own_is_a_file_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/dots.py").write_text(OWN_SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    values = yaml.safe_load(profile_text("smoke"))
    values["domains"]["portraits"] = {"source": "dots", "images_per_class": 3, "path": "somewhere"}
    with pytest.raises(FreezeAsGuardError, match="source is 'dots'; choose from embedded-figures, .*crawl"):
        parse_params(values, Path("params.yaml"))
    monkeypatch.setitem(SOURCES, "dots", Source("mine.dots", needs="path", scores=("clip_tiny",)))
    domain = parse_params(values, Path("params.yaml")).domains["portraits"]
    assert domain.score_names() == ("clip_tiny",)
    manifest = crawl_domain(domain, tmp_path / "raw", tmp_path / "downloads", 7)
    assert manifest["caption"].tolist() == ["dot 0", "dot 1", "dot 2"] and (manifest["status"] == "ok").all()
    assert manifest["source"].tolist() == [f"somewhere#{i}" for i in range(3)] and set(manifest["subject"]) == {"Dots"}
    first = Image.open(tmp_path / "raw" / manifest["path"][0])
    assert first.size == (64, 64) and first.getpixel((0, 0)) == (7, 0, 0)
    with pytest.raises(ValueError, match="source is dots, so path must be given"):
        Domain(source="dots")


@pytest.mark.parametrize("name", SOURCES)
def test_registered_sources_hold_together(name: str) -> None:
    source = SOURCES[name]
    assert callable(importlib.import_module(source.import_path).items)
    assert not source.needs or source.needs in Domain.model_fields
    assert source.scores and set(source.scores) <= SCORES.keys()


def test_the_registry_of_sources_is_light() -> None:
    heavy = "{'torch', 'PIL', 'pandas', 'numpy', 'pydantic', 'icrawler', 'datasets'}"
    code = f"import sys, freezeasguard.data.sources.registry; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# --- listings and the hub ------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_listings_with_captions(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    rows = [{"path": f"{i}.jpg", "class": "ann_lee", "caption": caption} for i, caption in ((1, " he\nllo"), (2, ""))]
    listing = tmp_path / f"list{suffix}"
    table = pd.DataFrame(rows)
    listing.write_text(table.to_csv(index=False) if suffix == ".csv" else table.to_json(orient="records", lines=True))
    manifest = crawl_domain(Domain(source="folder", path=listing), tmp_path / "raw", tmp_path / "d", 0)
    assert manifest["status"].tolist() == ["ok", "missing file"]
    assert manifest["caption"].tolist() == ["he llo", ""]  # one line
    assert set(manifest["subject"]) == {"Ann Lee"}
    listing.write_text("a,b\n1,2\n" if suffix == ".csv" else '{"a": 1}\n')
    with pytest.raises(FreezeAsGuardError, match="has no column 'class'"):
        crawl_domain(Domain(source="folder", path=listing), tmp_path / "raw2", tmp_path / "d", 0)


def test_datasets_loads_a_local_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    repo = tmp_path / "logos"
    (repo / "train").mkdir(parents=True)
    rows = []
    for i in range(4):
        (repo / f"train/{i}.jpg").write_bytes(jpeg(i) if i else jpeg(i)[:300])
        rows.append({"file_name": f"{i}.jpg", "text": f"a logo of brand {i}"})
    (repo / "train/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = Hub(repo=str(repo), caption_column="text", class_name="logos", licence="CC BY-NC 3.0")
    manifest = crawl_domain(Domain(source="hf", hf=config), tmp_path / "raw", tmp_path / "d", 0)
    assert sorted(manifest["status"])[:3] == ["ok"] * 3 and sorted(manifest["status"])[3].startswith("unreadable")
    assert "a logo of brand 2" in set(manifest["caption"]) and set(manifest["licence"]) == {"CC BY-NC 3.0"}
    with pytest.raises(FreezeAsGuardError, match="has no column 'nothing'"):
        bad = config.model_copy(update={"caption_column": "nothing"})
        crawl_domain(Domain(source="hf", hf=bad), tmp_path / "raw2", tmp_path / "d", 0)


def test_a_hub_repository_needs_a_revision() -> None:
    with pytest.raises(ValueError, match="needs a revision"):
        Hub(repo="someone/something", class_name="x")


# --- cleaning -------------------------------------------------------------------------------------


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (80, 40), "blue")
    image.paste("red", (0, 0, 40, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: what was on the left is on top
    (tmp_path / "in/a").mkdir(parents=True)
    image.save(tmp_path / "in/a/1.jpg", exif=exif, quality=95)
    manifest = crawl_domain(Domain(source="folder", path=tmp_path / "in"), tmp_path / "raw", tmp_path / "d", 0)
    assert manifest[["width", "height"]].values.tolist() == [[40, 80]]
    pixels = np.asarray(Image.open(tmp_path / "raw" / manifest["path"][0]))
    assert pixels[10, 32, 0] > 200 and pixels[54, 32, 2] > 200


def test_square_is_central_or_about_the_face() -> None:
    image = Image.new("RGB", (100, 50), "black")
    image.paste("white", (80, 0, 100, 50))
    assert np.asarray(square(image, 50)).mean() == 0
    assert np.asarray(square(image, 50, face=(85, 10, 10, 10))).mean() > 90


def test_small_images_and_wrong_numbers_of_faces_are_refused() -> None:
    image = Image.open(io.BytesIO(jpeg(0))).convert("RGB")
    assert Cleaner(Clean(min_side_px=512), 64)(image)[1] == "small: 96x80 pixels"
    assert Cleaner(Clean(faces=1), 64)(image)[1] == "faces: 0 instead of 1"
    assert Cleaner(Clean(faces=0), 64)(image)[1] == "ok"
    with pytest.raises(FreezeAsGuardError, match="YuNet needs its ONNX file"):
        Cleaner(Clean(faces=1, face_detector="yunet"), 64)


def test_near_duplicates_keep_the_first() -> None:
    images = [Image.open(io.BytesIO(content)) for content in (jpeg(1), jpeg(2), jpeg(1, quality=50), jpeg(2, (48, 40)))]
    hashes = [perceptual_hash(image) for image in images]
    assert near_duplicates(hashes, 6) == [None, None, 0, 1]
    assert near_duplicates(hashes[:2], 0) == [None, None] and near_duplicates([], 3) == []


def test_near_duplicates_differ_in_at_most_so_many_bits() -> None:
    dark, light = np.zeros(64, dtype=bool), np.arange(64) < 6
    assert near_duplicates([dark, light], 6) == [None, 0]
    assert near_duplicates([dark, light], 5) == [None, None]
    assert near_duplicates([dark, dark], 0) == [None, 0]
