"""A web server on this machine that serves what the web serves: good images and everything else."""

from __future__ import annotations

import errno
import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image


def jpeg(seed: int, size: tuple[int, int] = (96, 80), quality: int = 90) -> bytes:
    """A picture of coarse coloured squares, different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def big_png() -> bytes:
    """30 megapixels in a few kilobytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (6000, 5000), "red").save(buffer, "PNG")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    hits: Counter[str] = Counter()
    files: dict[str, bytes] = {}

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, body: bytes, kind: str = "image/jpeg", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:  # noqa: N802 (the standard library's name)
        path = self.path.partition("?")[0]
        type(self).hits[path] += 1
        if path in self.files:
            self._send(self.files[path])
        elif path == "/robots.txt":
            self._send(b"User-agent: *\nDisallow: /private/\n", "text/plain")
        elif path == "/search":
            names = [f"/good/{i}.jpg" for i in range(6)]
            names += ["/html.jpg", "/missing.jpg", "/redirect.jpg", "/slow.jpg", "/endless.jpg", "/big.png"]
            names += ["/truncated.jpg", "/private/1.jpg", "/copy.jpg", "/almost.jpg", "/loop.jpg"]
            links = "".join(f'<img src="{name}">' for name in names)
            self._send(f"<html>{links}<img src='file:///etc/passwd'></html>".encode(), "text/html")
        elif path.startswith(("/good/", "/private/")):
            self._send(jpeg(int(path.rsplit("/", 1)[1].split(".")[0])))
        elif path == "/copy.jpg":
            self._send(jpeg(0))
        elif path == "/almost.jpg":
            self._send(jpeg(1, quality=60))
        elif path == "/html.jpg":
            self._send(b"<html>not found, but politely</html>")
        elif path == "/redirect.jpg":
            self.send_response(302)
            self.send_header("Location", "/good/100.jpg")
            self.end_headers()
        elif path == "/loop.jpg":
            self.send_response(302)
            self.send_header("Location", "/loop.jpg")
            self.end_headers()
        elif path == "/truncated.jpg":
            self._send(jpeg(101)[:700])
        elif path == "/big.png":
            self._send(big_png(), "image/png")
        elif path in ("/slow.jpg", "/endless.jpg"):
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(200):
                    self.wfile.write(b"x" * (10 if path == "/slow.jpg" else 200_000))
                    self.wfile.flush()
                    if path == "/slow.jpg":
                        time.sleep(0.1)
            except OSError:
                pass  # the client has had enough
        else:
            self._send(b"no", "text/plain", 404)


@contextmanager
def serve(files: dict[str, bytes] | None = None) -> Iterator[tuple[str, Counter[str]]]:
    """The server's address and its count of requests by path."""
    handler = type("Counted", (Handler,), {"hits": Counter(), "files": files or {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.hits
    finally:
        server.shutdown()
        server.server_close()


class Internet:
    """Names, addresses and connections as tests say; every connection ends at a server on this machine.

    Nothing of the library is replaced: the operating system's resolver and `connect` are.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hosts: dict[str, list[str]], pages: dict[str, Any]) -> None:
        self.hosts, self.pages = hosts, pages
        self.resolved: list[str] = []
        self.connected: list[str] = []
        self.asked: list[str] = []
        real = socket.socket.connect
        internet = self

        class Answers(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:  # noqa: N802 (the standard library's name)
                url = f"http://{self.headers['Host']}{self.path}"
                internet.asked.append(url)
                answer = internet.pages.get(url, 404)
                self.send_response(answer if isinstance(answer, int) else 302 if isinstance(answer, str) else 200)
                if isinstance(answer, str):
                    self.send_header("Location", answer)
                self.end_headers()
                self.wfile.write(answer if isinstance(answer, bytes) else b"")

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.address = self.server.server_address

        def resolve(host: str, port: int, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
            self.resolved.append(host)
            found = self.hosts.get(host, [host])
            family = {True: socket.AF_INET6, False: socket.AF_INET}
            return [(family[":" in a], socket.SOCK_STREAM, 6, "", (a, port)) for a in found]

        def connect(line: socket.socket, address: Any) -> None:
            self.connected.append(address[0])
            if line.family == socket.AF_INET6:
                raise OSError(errno.ENETUNREACH, "no IPv6 here")
            real(line, self.address)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(socket.socket, "connect", connect)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that does with each connection what `answer` does, once the request has come."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def handle(line: socket.socket) -> None:
            with line:
                try:
                    line.recv(4096)
                    answer(line)
                except OSError:
                    pass  # the client has had enough

        def accept() -> None:
            while True:
                try:
                    line = listener.accept()[0]
                except OSError:
                    return  # closed
                threading.Thread(target=handle, args=(line,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
