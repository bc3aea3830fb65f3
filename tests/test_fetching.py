"""`freezeasguard fetch`: each thing once, whole, by its hash; what nobody knew is pinned by the first one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from freezeasguard import fetching, weights
from freezeasguard.data.crawl import crawl_domain
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.fetching import fetch_all, needs
from freezeasguard.models.fetch import fetch_model
from freezeasguard.settings.params import Archive, Domain, Model, Params, parse_params
from freezeasguard.settings.pins import pinned, read_pins
from freezeasguard.settings.profiles import profile_text
from loopback import serve
from test_sources import faces_zip

TINY = Path(__file__).parent.parent / "data/models/tiny-1.5"
COMMIT = "abc0" * 10
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetching, "ALLOW_PRIVATE", True)
    return tmp_path


def params_of(**changed: Any) -> Params:
    values: Any = yaml.safe_load(profile_text("smoke")) | changed.pop("top", {})
    values["domains"]["portraits"] |= changed
    return parse_params(values, Path("params.yaml"))


def fetched(params: Params) -> tuple[list[str], list[str]]:
    """The lines that were told, and those of what is wrong."""
    told: list[str] = []
    return told, fetch_all(params, told.append)


def known(monkeypatch: pytest.MonkeyPatch, name: str, url: str, sha256: str | None) -> None:
    monkeypatch.setitem(weights.KNOWN, name, weights.Known(url, sha256=sha256))


def test_a_profile_of_embedded_worlds_needs_nothing() -> None:
    assert list(needs(params_of())) == []


def test_weights_come_once_and_are_checked_ever_after(monkeypatch: pytest.MonkeyPatch) -> None:
    content, path = b"weights" * 1000, Path("data/weights/CSD-ViT-L.bin")
    params = params_of(scores=["csd", "fd_efficientnet_lite0"])
    score = params.score.model_copy(update={"csd_weights": path})
    params = params.model_copy(update={"score": score})
    right = hashlib.sha256(content).hexdigest()
    with serve({"/csd": content}) as (address, hits):
        known(monkeypatch, path.name, f"{address}/csd", "0" * 64)
        told, wrong = fetched(params)
        assert len(wrong) == 1 and f"has sha256 {right}, freezeasguard.weights says 0000" in wrong[0]
        assert told[0].startswith("missing  score.csd_weights") and not path.exists()
        known(monkeypatch, path.name, f"{address}/csd", right)
        for word in ("fetched", "here"):
            told, wrong = fetched(params)
            assert wrong == [] and told[0].split()[0] == word and path.read_bytes() == content
        assert hits["/csd"] == 2 and read_pins() == {}, "a hash that is known needs no pin"
    path.write_bytes(b"other")
    assert "CSD-ViT-L.bin has sha256" in fetched(params)[1][0]


def test_a_hash_that_nobody_knew_is_pinned_by_the_first_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("data/weights/640m.onnx")
    params = params_of(scores=["nudenet"])
    params = params.model_copy(update={"score": params.score.model_copy(update={"nudenet_weights": path})})
    with serve({"/640m": b"first"}) as (address, _):
        known(monkeypatch, path.name, url := f"{address}/640m", None)
        assert fetched(params)[1] == []
        assert read_pins() == {url: hashlib.sha256(b"first").hexdigest()}
    path.write_bytes(b"second")
    assert f"data/pinned.json says {hashlib.sha256(b'first').hexdigest()}" in fetched(params)[1][0]


def test_an_unknown_file_must_be_put_there_by_hand() -> None:
    path = Path("data/weights/mine.bin")
    params = params_of(scores=["csd"])
    params = params.model_copy(update={"score": params.score.model_copy(update={"csd_weights": path})})
    assert (
        "mine.bin is no file that this project knows; put it there, or correct score.csd_wei" in fetched(params)[1][0]
    )
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    assert fetched(params)[1] == []


def test_an_archive_is_pinned_then_crawled_by_its_hash(tmp_path: Path) -> None:
    content = faces_zip()
    with serve({"/ff25.zip": content}) as (address, hits):
        block = {"url": f"{address}/ff25.zip", "sha256": "pinned", "allow_private": True}
        params = params_of(source="archive", archive=block)
        archive = params.domains["portraits"].archive
        assert archive is not None
        with pytest.raises(FreezeAsGuardError, match="archive.sha256 of .* is not pinned yet; run `freezeas"):
            crawl_domain(Domain(source="archive", archive=archive), tmp_path / "raw", tmp_path / "d", 0)
        for _ in range(2):
            assert fetched(params)[1] == []
        assert read_pins() == {block["url"]: hashlib.sha256(content).hexdigest()} and hits["/ff25.zip"] == 1
        filled = pinned(params, read_pins()).domains["portraits"]
        assert filled.archive == Archive(**{**block, "sha256": hashlib.sha256(content).hexdigest()})
        downloads = Path("data/downloads/portraits")
        manifest = crawl_domain(filled, tmp_path / "raw", downloads, 0)
        assert (manifest["status"] == "ok").sum() == 6 and hits["/ff25.zip"] == 1, "the crawl finds what was fetched"
    (downloads / "archive.zip").write_bytes(b"another")
    assert "data/pinned.json says" in fetched(params)[1][0]


def test_a_pickled_clip_becomes_safetensors_without_running_code(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = tmp_path / "clip"
    folder.mkdir()
    release = weights.Known(repo="someone/clip", revision=COMMIT)

    def verified() -> None:
        digest = hashlib.sha256((folder / "pytorch_model.bin").read_bytes()).hexdigest()
        names = {"pytorch_model.bin": "pytorch_model.bin"}
        note = {"repo": release.repo, "revision": COMMIT, "names": names, "sha256": {"pytorch_model.bin": digest}}
        (folder / "verified.json").write_text(json.dumps(note))

    torch.save({"w": Code()}, folder / "pytorch_model.bin")
    verified()
    with pytest.raises(Exception, match="eights"):
        fetching._bring_clip(folder, release)
    assert not (tmp_path / "ran").exists() and not (folder / "model.safetensors").exists()
    torch.save({"w": torch.arange(3.0)}, folder / "pytorch_model.bin")
    verified()
    fetching._bring_clip(folder, release)
    assert load_file(folder / "model.safetensors")["w"].tolist() == [0, 1, 2]


# --- the hub ----------------------------------------------------------------------------------------


@contextmanager
def loopback_hub(large: bytes, slow: threading.Event) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A hub of one repository, the tiny model with a `large` UNet; while `slow` is set, that stops half way."""
    files = {str(p.relative_to(TINY)): p.read_bytes() for p in sorted(TINY.rglob("*")) if p.is_file()}
    files |= {
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "sd.ckpt": b"pickle",
        "safety_checker/model.safetensors": b"",
    }
    files[UNET] = large
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:  # noqa: N802
            self._answer(False)

        def do_GET(self) -> None:  # noqa: N802
            self._answer(True)

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/someone/tiny"):
                return self._send(self._listing(path), body, {"Content-Type": "application/json"})
            name = path.removeprefix(f"/someone/tiny/resolve/{COMMIT}/")
            if name not in files:
                return self._send(b"{}", body, {"X-Error-Code": "EntryNotFound"}, 404)
            content, wanted = files[name], self.headers.get("Range", "")
            start = int(wanted[6:].split("-")[0] or 0) if wanted else 0
            if body:
                asked.append((name, wanted))
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(
                content[start:],
                body,
                headers,
                206 if wanted else 200,
                name == UNET,
            )

        def _listing(self, path: str) -> bytes:
            siblings = []
            for name, content in files.items():
                lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
                large = name.endswith((".safetensors", ".bin"))
                siblings.append(
                    {"rfilename": name, "size": len(content), "blobId": "0"} | ({"lfs": lfs} if large else {})
                )
            if "/tree/" in path:
                tree = [{"type": "file", "path": s["rfilename"], "size": s["size"], "oid": "0"} for s in siblings]
                return json.dumps(tree).encode()
            return json.dumps({"id": "someone/tiny", "sha": COMMIT, "siblings": siblings}).encode()

        def _send(
            self, content: bytes, body: bool, headers: dict[str, str], status: int = 200, halts: bool = False
        ) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body and halts and slow.is_set():
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                while slow.is_set():
                    time.sleep(0.05)
            elif body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.kill  # more than a minute, of the hub client's start-up twice
def test_a_killed_fetch_of_a_model_goes_on_and_the_stage_finds_it(project: Path) -> None:
    """With the hub's real client, and the revision pinned by the first fetch."""
    values: Any = yaml.safe_load(profile_text("smoke"))
    values["models"] = {"tiny-1.5": {"repo": "someone/tiny", "revision": "pinned"}}
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    large, slow = np.random.default_rng(0).bytes(24 * 2**20), threading.Event()  # the client writes 10 MB at a time
    slow.set()
    with loopback_hub(large, slow) as (address, asked):
        home = {"HF_ENDPOINT": address, "HF_HOME": str(project / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment = {**os.environ, **home, "HF_HUB_DOWNLOAD_TIMEOUT": "60"}
        command = [sys.executable, "-c", "from freezeasguard.cli import app; app()", "fetch"]
        process = subprocess.Popen(command, cwd=project, env=environment)
        try:
            until = time.monotonic() + 60
            while not any(p.stat().st_size >= 10**7 for p in (project / "data").rglob("*.incomplete")):
                assert time.monotonic() < until and process.poll() is None, "the download has not begun"
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
        slow.clear()
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and "fetched  models.tiny-1.5  someone/tiny" in done.stdout, done.stderr
        times = Counter(name for name, _ in asked)
        assert times.pop(UNET) == 2 and set(times.values()) == {1}, "what came whole is not asked for again"
        assert not list((project / "data").rglob("*.incomplete"))
        n_asked = len(asked)
        assert not any(name.endswith((".bin", ".ckpt")) or "safety" in name for name, _ in asked)
        spec = pinned(Model(repo="someone/tiny", revision="pinned"), read_pins())
        assert spec.revision == COMMIT
        fetch_model(spec, project / "data/fetched/tiny-1.5", project / "data/downloads/models/tiny-1.5")
        assert len(asked) == n_asked, "the stage takes what was fetched"
    assert (project / "data/fetched/tiny-1.5" / UNET).read_bytes() == large
