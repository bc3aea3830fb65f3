"""A large download that was cut goes on where it stopped, and is never made of two files."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from freezeasguard.data.download import Limits, fetch_to_file
from freezeasguard.errors import FreezeAsGuardError


class Ranged:
    """A file on a server that knows ranges; `cut` ends the line after so many bytes, `etag` names the file."""

    def __init__(self, content: bytes, cut: int | None = None, etag: str = '"a"') -> None:
        self.content, self.cut, self.etag = content, cut, etag
        self.asked: list[str] = []

    @contextmanager
    def address(self) -> Iterator[str]:
        served = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:  # noqa: N802 (the standard library's name)
                wanted = self.headers.get("Range", "all")
                served.asked.append(wanted.removeprefix("bytes="))
                known = wanted != "all" and self.headers["If-Range"] == served.etag
                start = int(wanted[6:-1]) if known else 0
                body = served.content[start:]
                self.send_response(416 if known and not body else 206 if known else 200)
                if known and body:
                    self.send_header("Content-Range", f"bytes {start}-{len(served.content) - 1}/*")
                self.send_header("ETag", served.etag)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: served.cut])

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/a"
        finally:
            server.shutdown()
            server.server_close()


def fetch_large(served: Ranged, path: Path, sha256: str | None) -> str:
    with served.address() as url:
        return fetch_to_file(url, path, Limits(10**8, 20, allow_private=True), sha256)


def test_a_download_that_was_cut_goes_on_where_it_stopped(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(3 * 2**20)
    right, path = hashlib.sha256(content).hexdigest(), tmp_path / "d/a.bin"
    served = Ranged(content, cut=2**20)
    for _ in range(2):
        with pytest.raises(FreezeAsGuardError, match="cannot fetch .*connection.*; the next run goes on where it stop"):
            fetch_large(served, path, right)
        assert not path.exists()
    served.cut = None
    assert fetch_large(served, path, None) == right and path.read_bytes() == content
    assert served.asked == ["all", f"{2**20}-", f"{2 * 2**20}-"]
    assert [file.name for file in path.parent.iterdir()] == ["a.bin"]


def test_a_file_that_changed_on_the_server_comes_from_its_start(tmp_path: Path) -> None:
    old, new = b"o" * 10**6, b"n" * 2 * 10**6
    path = tmp_path / "a.bin"
    with pytest.raises(FreezeAsGuardError, match="cannot fetch"):
        fetch_large(Ranged(old, cut=5 * 10**5), path, None)
    fetch_large(Ranged(new, etag='"b"'), path, None)
    assert path.read_bytes() == new


def test_a_part_that_is_whole_already_is_asked_for_again_and_checked(tmp_path: Path) -> None:
    content, path = b"x" * 10**6, tmp_path / "a.bin"
    (tmp_path / ".a.bin.part").write_bytes(content)
    (tmp_path / ".a.bin.part.validator").write_text('"a"')
    served = Ranged(content)
    assert fetch_large(served, path, None) == hashlib.sha256(content).hexdigest()
    assert served.asked == [f"{10**6}-", "all"] and path.read_bytes() == content


def test_a_part_from_an_answer_that_nothing_identifies_is_thrown_away(tmp_path: Path) -> None:
    (tmp_path / ".a.bin.part").write_bytes(b"what?")
    served = Ranged(b"y" * 1000)
    fetch_large(served, tmp_path / "a.bin", None)
    assert served.asked == ["all"] and (tmp_path / "a.bin").read_bytes() == served.content


def test_a_hash_that_is_wrong_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FreezeAsGuardError, match="has sha256 .*, params.yaml says 00"):
        fetch_large(Ranged(b"z" * 1000), tmp_path / "a.bin", "0" * 64)
    assert list(tmp_path.iterdir()) == []
