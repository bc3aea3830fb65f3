"""Downloads that may meet anything: limited in size and time, http(s) only, no private addresses."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import socket
import stat
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.robotparser import RobotFileParser

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import folder_atomically, write_atomically

USER_AGENT = "FreezeAsGuard/0.1 (research crawler)"
MAX_REDIRECTS = 5
CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Limits:
    """What a download may cost."""

    max_bytes: int
    timeout_s: float
    """Of the whole transfer, not only of each read: an endless drip ends too."""
    allow_private: bool = False
    """Loopback and private networks; for tests and local mirrors."""


@dataclass(frozen=True)
class Fetched:
    """Outcome of one URL; `content` is None unless status is ok."""

    status: str
    url: str
    """After redirects."""
    content: bytes | None = None

    @property
    def is_final(self) -> bool:
        """False for what another try may cure."""
        return not self.status.startswith(("timeout", "connection", "http 5", "http 429"))


def refuse_address(url: str, allow_private: bool) -> str | None:
    """Why this URL must not be fetched, or None."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        return "refused: malformed address"
    if parts.scheme not in ("http", "https") or not host:
        return f"refused: {parts.scheme or 'no'} scheme"
    if allow_private:
        return None
    try:
        found = socket.getaddrinfo(host, port, proto=socket.IPPROTO_TCP)
    except UnicodeError:  # a name that no resolver can be asked for
        return "refused: malformed address"
    except OSError:
        return "connection: unknown host"
    for entry in found:
        if not ipaddress.ip_address(entry[4][0]).is_global:
            return "refused: private address"
    return None


def fetch(session: Any, url: str, limits: Limits, headers: dict[str, str] | None = None) -> Fetched:
    """GET a URL with a `requests` session; every redirect is checked like the first address."""
    import requests
    import urllib3

    deadline = time.monotonic() + limits.timeout_s
    for _ in range(MAX_REDIRECTS + 1):
        if reason := refuse_address(url, limits.allow_private):
            return Fetched(reason, url)
        try:
            with session.get(
                url,
                stream=True,
                timeout=limits.timeout_s,
                allow_redirects=False,
                headers={"User-Agent": USER_AGENT} if headers is None else headers,
            ) as response:
                if response.is_redirect:
                    url = urljoin(url, response.headers["location"])
                    continue
                if response.status_code != 200:
                    return Fetched(f"http {response.status_code}", url)
                parts, size = [], 0
                # read1 returns what has come: iter_content would wait for a full chunk while a server drips
                while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
                    size += len(chunk)
                    if size > limits.max_bytes:
                        return Fetched(f"too large: over {limits.max_bytes} bytes", url)
                    if time.monotonic() > deadline:
                        return Fetched(f"timeout: over {limits.timeout_s:g} s", url)
                    parts.append(chunk)
                return Fetched("ok", url, b"".join(parts))
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            return Fetched(f"timeout: over {limits.timeout_s:g} s", url)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            # ValueError: a redirect to what is no address
            return Fetched(f"connection: {type(error).__name__}", url)
    return Fetched(f"refused: over {MAX_REDIRECTS} redirects", url)


@dataclass(frozen=True)
class Page:
    """What icrawler's parsers read of a response."""

    url: str
    content: bytes
    status_code: int = 200

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")


class LimitedSession:
    """Stands in for a parser's session, so that result pages keep to the limits as well."""

    def __init__(self, session: Any, limits: Limits) -> None:
        self._session, self._limits = session, limits

    def get(self, url: str, headers: dict[str, str] | None = None, **_: Any) -> Page:
        import requests

        fetched = fetch(self._session, url, self._limits, headers or {})
        if fetched.content is None:
            raise requests.ConnectionError(fetched.status)
        return Page(fetched.url, fetched.content)


class Robots:
    """robots.txt of each host, read once."""

    def __init__(self, session: Any, limits: Limits) -> None:
        self._session, self._limits = session, limits
        self._known: dict[str, RobotFileParser | None] = {}

    def note(self, url: str) -> str:
        """allowed, disallowed, or none (the host has no robots.txt)."""
        parts = urlsplit(url)
        host = f"{parts.scheme}://{parts.netloc}"
        if host not in self._known:
            fetched = fetch(self._session, f"{host}/robots.txt", self._limits)
            parser = None
            if fetched.content is not None:
                parser = RobotFileParser()
                parser.parse(fetched.content.decode("utf-8", "replace").splitlines())
            self._known[host] = parser
        parser = self._known[host]
        if parser is None:
            return "none"
        return "allowed" if parser.can_fetch(USER_AGENT, url) else "disallowed"


@dataclass(frozen=True)
class Record:
    """One line of a download log."""

    url: str
    class_name: str
    page: str
    status: str
    file: str
    sha256: str
    bytes: int
    robots: str
    time: str


class DownloadLog:
    """What was fetched already, one JSON line a URL; a torn last line of a killed run is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.records: dict[tuple[str, str], Record] = {}
        if path.is_file():
            lines = path.read_text().splitlines()
            good = []
            for line in lines:
                try:
                    record = Record(**json.loads(line))
                except (json.JSONDecodeError, TypeError):
                    continue
                self.records[record.class_name, record.url] = record
                good.append(line)
            if len(good) < len(lines):
                path.write_text("".join(f"{line}\n" for line in good))

    def is_done(self, class_name: str, url: str) -> bool:
        record = self.records.get((class_name, url))
        if record is None:
            return False
        present = record.status != "ok" or (self.path.parent / record.file).is_file()
        return present and Fetched(record.status, url).is_final

    def add(self, record: Record) -> None:
        self.records[record.class_name, record.url] = record
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")

    def __iter__(self) -> Iterator[Record]:
        return iter(sorted(self.records.values(), key=lambda r: (r.class_name, r.url)))


def store(log: DownloadLog, class_name: str, url: str, page: str, fetched: Fetched, robots: str) -> Record:
    """Keep the bytes under the hash of the URL, and the outcome in the log."""
    name, digest = "", ""
    if fetched.content is not None:
        digest = hashlib.sha256(fetched.content).hexdigest()
        name = f"files/{class_name}/{hashlib.sha256(url.encode()).hexdigest()[:24]}"
        path = log.path.parent / name
        with write_atomically(path) as temporary:
            temporary.write_bytes(fetched.content)
    record = Record(
        url=url,
        class_name=class_name,
        page=page,
        status=fetched.status,
        file=name,
        sha256=digest,
        bytes=len(fetched.content or b""),
        robots=robots,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    log.add(record)
    return record


def unpack_zip(archive: Path, out: Path, *, max_bytes: int, max_files: int = 200_000) -> None:
    """Unpack a zip whole or not at all; path traversal, links and bombs are refused.

    The sizes that the archive claims are checked first, the bytes that come out as they come.
    """
    try:
        with zipfile.ZipFile(archive) as opened, folder_atomically(out) as temporary:
            infos = opened.infolist()
            if len(infos) > max_files or sum(info.file_size for info in infos) > max_bytes:
                raise FreezeAsGuardError(
                    f"{archive} would unpack to more than {max_bytes} bytes or {max_files} files; "
                    "raise archive.max_unpacked_bytes if that is right"
                )
            left = max_bytes
            for info in infos:
                target = PurePosixPath(info.filename.replace("\\", "/"))
                if target.is_absolute() or ".." in target.parts or stat.S_ISLNK(info.external_attr >> 16):
                    raise FreezeAsGuardError(f"{archive} holds an unsafe entry {info.filename!r}; it was not unpacked")
                if info.is_dir():
                    continue
                path = temporary.joinpath(*target.parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as source, path.open("wb") as sink:
                    while chunk := source.read(CHUNK_BYTES):
                        left -= len(chunk)
                        if left < 0:
                            raise FreezeAsGuardError(f"{archive} unpacks to more than it claims; it was not unpacked")
                        sink.write(chunk)
    except zipfile.BadZipFile as error:
        raise FreezeAsGuardError(f"{archive} is no readable zip archive: {error}; fetch it again") from error


def verify_sha256(path: Path, expected: str) -> None:
    """Refuse a file whose content is not what params.yaml says."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise FreezeAsGuardError(
            f"{path} has sha256 {found}, params.yaml says {expected}; fetch it again or correct archive.sha256"
        )


def fetch_to_file(url: str, path: Path, limits: Limits) -> None:
    """One large file, by way of a temporary name."""
    import requests

    with requests.Session() as session:
        fetched = fetch(session, url, limits)
    if fetched.content is None:
        raise FreezeAsGuardError(
            f"cannot fetch {url}: {fetched.status}. Download it by hand and set archive.path to the file"
        )
    with write_atomically(path) as temporary:
        temporary.write_bytes(fetched.content)
