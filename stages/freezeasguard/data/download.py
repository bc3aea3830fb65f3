"""Downloads that may meet anything: limited in size and time, http(s) only, no private addresses.

Imported only where something is fetched or unpacked: `requests` takes its time.
"""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import os
import queue
import re
import socket
import stat
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import urljoin, urlsplit
from urllib.robotparser import RobotFileParser

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.cookies import extract_cookies_to_jar
from tqdm.auto import tqdm
from tqdm.utils import CallbackIOWrapper

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import explain_full_disk, folder_atomically, write_atomically

USER_AGENT = "FreezeAsGuard/0.1 (research crawler)"
MAX_REDIRECTS = 5
CHUNK_BYTES = 64 * 1024
ROBOTS_MAX_BYTES = 512 * 1024  # RFC 9309 asks for 500 KiB at least
ROBOTS_NOTES = ("none", "allowed", "disallowed")

GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
SIX_TO_FOUR = ipaddress.ip_network("2002::/16")
NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class Limits:
    """What a download may cost."""

    max_bytes: int
    timeout_s: float
    """Of the whole exchange - names, connections, redirects, robots.txt, headers and body - not of each read."""
    allow_private: bool = False
    """Loopback and private networks; for tests and local mirrors."""


@dataclass(frozen=True)
class Fetched:
    """Outcome of one URL; `content` is None unless status is ok."""

    status: str
    url: str
    """After redirects."""
    content: bytes | None = None
    robots: str = "none"
    """The strictest of what robots.txt says on the way; none where no host has one, or none was asked."""

    @property
    def is_final(self) -> bool:
        """False for what another try may cure."""
        return not self.status.startswith(("timeout", "connection", "http 5", "http 429"))


class Ended(Exception):
    """An exchange that brings nothing; its text is the status for the log."""


class Deadline:
    def __init__(self, seconds: float) -> None:
        self.seconds, self._end = seconds, time.monotonic() + seconds

    def left(self) -> float:
        """Seconds; an exchange that has none left ends here."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise Ended(f"timeout: over {self.seconds:g} s")
        return left

    @contextmanager
    def holds(self) -> Iterator[None]:
        """Whatever a foreign host makes the libraries raise becomes a status: a bad answer costs itself alone."""
        try:
            yield
        except Exception as error:
            self.left()  # an exchange that was cut says so
            late = isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError))
            name = f"timeout: over {self.seconds:g} s" if late else f"connection: {type(error).__name__}"
            raise Ended(name) from error
        self.left()  # a cut connection may look like the end of the answer


def read_address(url: str) -> tuple[str, int]:
    """Host and port of a web address; one that two readers may take for different hosts is refused."""
    try:
        parts, other = urlsplit(url), urllib3.util.parse_url(url)
        host, port, named = parts.hostname, parts.port, (other.host or "").strip("[]")
        alike = not url.isascii() or (host, port) == (named, other.port)
    except ValueError:
        raise Ended("refused: malformed address") from None
    if parts.scheme not in ("http", "https"):
        raise Ended(f"refused: {parts.scheme or 'no'} scheme")
    if "@" in parts.netloc:
        raise Ended("refused: user name in the address")
    quoted = not re.fullmatch(r"[A-Za-z0-9._:-]+", named)  # by `requests`, which asks for another host then
    if not host or not alike or quoted or re.search(r"[\x00-\x1f\x7f\\]", url):
        raise Ended("refused: malformed address")
    return named, (80 if parts.scheme == "http" else 443) if port is None else port


def absolute(page: str, address: str) -> str:
    """A malformed address stays as it is: it is refused where it is read, and the log says so."""
    try:
        return urljoin(page, address)
    except ValueError:
        return address


def is_public(address: str) -> bool:
    """An address of the wide net: not of a private network, nor an IPv6 one that leads to such an IPv4 one."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        if found in NAT64 or found.ipv4_mapped:
            found = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        elif found not in GLOBAL_UNICAST or found in SIX_TO_FOUR:
            return False
    return found.is_global and not found.is_multicast


def resolve(url: str, allow_private: bool, deadline: Deadline) -> list[tuple[Any, ...]]:
    """All that the URL's host resolves to, each checked; connect to these, for a name may change its mind."""
    host, port = read_address(url)
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()  # a resolver knows no deadline
    try:
        found = answers.get(timeout=deadline.left())
    except queue.Empty:
        raise Ended(f"timeout: over {deadline.seconds:g} s") from None
    if isinstance(found, (UnicodeError, OverflowError)):  # what no resolver can be asked for
        raise Ended("refused: malformed address")
    if isinstance(found, Exception):
        raise Ended("connection: unknown host")
    for entry in found:
        if not (allow_private or is_public(entry[4][0])):
            raise Ended("refused: private address")
    return found


def connect(entry: tuple[Any, ...], timeout_s: float) -> socket.socket:
    """A connection to one answer of the resolver, and to nothing else."""
    family, kind, protocol, _, address = entry
    line = socket.socket(family, kind, protocol)
    try:
        line.settimeout(timeout_s)
        line.connect(address)
    except BaseException:
        line.close()
        raise
    return line


class PinnedAdapter(HTTPAdapter):
    """Connects to the addresses that were checked, and hangs up at the deadline whatever is waited for.

    The pool still knows the host by its name, so that the Host header, SNI and the certificate's check are as ever.
    Proxies of the environment are not used: they would resolve the name once more.
    """

    def __init__(self, found: list[tuple[Any, ...]], deadline: Deadline) -> None:
        super().__init__()
        self._found, self._deadline = found, deadline
        self._timers: list[tuple[threading.Timer, socket.socket]] = []

    def get_connection_with_tls_context(
        self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
    ) -> urllib3.HTTPConnectionPool:
        pool = super().get_connection_with_tls_context(request, verify, cert=cert)
        pool.ConnectionCls = type("Pinned", (pool.ConnectionCls,), {"_new_conn": lambda _: self._connect()})
        return pool

    def _connect(self) -> socket.socket:
        failure: OSError = OSError("no address")
        for tried, entry in enumerate(self._found):
            try:
                line = connect(entry, self._deadline.left() / (len(self._found) - tried))
            except OSError as error:
                failure = error
                continue
            line.settimeout(self._deadline.left())  # of the TLS handshake
            own = line.dup()  # the connection may wrap its own, or close it
            timer = threading.Timer(self._deadline.left(), _hang_up, [own])
            timer.daemon = True
            timer.start()
            self._timers.append((timer, own))
            return line
        raise failure

    def close(self) -> None:
        for timer, own in self._timers:
            timer.cancel()
            own.close()
        super().close()


def _hang_up(line: socket.socket) -> None:
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)


def transfer(
    session: requests.Session,
    url: str,
    limits: Limits,
    sink: BinaryIO,
    *,
    headers: dict[str, str] | None = None,
    robots: Robots | None = None,
    deadline: Deadline | None = None,
    begin: Callable[[requests.Response], int] | None = None,
) -> Fetched:
    """GET a URL into `sink`; every redirect is checked like the first address, against robots.txt as well.

    Args:
        begin: told of the answer before its body comes; returns how many of the bytes `sink` has already.
    """
    deadline = deadline or Deadline(limits.timeout_s)
    note = "none"
    try:
        for _ in range(MAX_REDIRECTS + 1):
            found = resolve(url, limits.allow_private, deadline)
            if robots is not None:
                note = max(note, robots.note(url, deadline), key=ROBOTS_NOTES.index)
                if robots.respected and note == "disallowed":
                    raise Ended("refused: robots.txt")
            with _answer(session, url, headers, found, deadline) as response:
                with deadline.holds():
                    target = session.get_redirect_target(response)
                    if target is not None:
                        url = absolute(url, target)
                        continue
                if response.status_code != 200 and not (begin is not None and response.status_code == 206):
                    raise Ended(f"http {response.status_code}")
                for chunk in _body(response, limits, deadline, 0 if begin is None else begin(response)):
                    sink.write(chunk)
                return Fetched("ok", url, robots=note)
        raise Ended(f"refused: over {MAX_REDIRECTS} redirects")
    except Ended as ended:
        return Fetched(str(ended), url, robots=note)


@contextmanager
def _answer(
    session: requests.Session,
    url: str,
    headers: dict[str, str] | None,
    found: list[tuple[Any, ...]],
    deadline: Deadline,
) -> Iterator[requests.Response]:
    with closing(PinnedAdapter(found, deadline)) as adapter:
        with deadline.holds():
            asked = requests.Request(
                "GET",
                url,
                headers={"User-Agent": USER_AGENT} if headers is None else headers,
                auth=lambda request: request,  # not what .netrc holds
            )
            request = session.prepare_request(asked)
            verify = session.merge_environment_settings(url, {}, None, None, None)["verify"]
            response = adapter.send(request, stream=True, timeout=deadline.left(), verify=verify)
        with closing(response):
            extract_cookies_to_jar(session.cookies, request, response.raw)
            yield response


def _body(response: requests.Response, limits: Limits, deadline: Deadline, size: int = 0) -> Iterator[bytes]:
    while True:
        with deadline.holds():
            # read1 returns what has come: iter_content would wait for a full chunk while a server drips
            chunk = response.raw.read1(CHUNK_BYTES, decode_content=True)
        size += len(chunk)
        if size > limits.max_bytes:
            raise Ended(f"too large: over {limits.max_bytes} bytes")
        if not chunk:
            return
        yield chunk


def fetch(session: requests.Session, url: str, limits: Limits, **how: Any) -> Fetched:
    """GET a URL into memory; `how` is as for `transfer`."""
    body = io.BytesIO()
    fetched = transfer(session, url, limits, body, **how)
    return replace(fetched, content=body.getvalue()) if fetched.status == "ok" else fetched


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
        fetched = fetch(self._session, url, self._limits, headers=headers or {})
        if fetched.content is None:
            raise requests.ConnectionError(fetched.status)
        return Page(fetched.url, fetched.content)


class Robots:
    """robots.txt of each host, read once."""

    def __init__(self, session: Any, limits: Limits, respected: bool = True) -> None:
        self._session = session
        self._limits = replace(limits, max_bytes=min(limits.max_bytes, ROBOTS_MAX_BYTES))
        self.respected = respected
        self._known: dict[str, RobotFileParser | None] = {}

    def note(self, url: str, deadline: Deadline) -> str:
        """allowed, disallowed, or none (the host has no robots.txt); what cannot be had forbids (RFC 9309)."""
        parts = urlsplit(url)
        host = f"{parts.scheme}://{parts.netloc}"
        try:
            if host not in self._known:
                self._known[host] = self._read(host, deadline)
            parser = self._known[host]
            return "none" if parser is None else "allowed" if parser.can_fetch(USER_AGENT, url) else "disallowed"
        except ValueError:  # of urllib's own reader, at a malformed rule
            return "disallowed"

    def _read(self, host: str, deadline: Deadline) -> RobotFileParser | None:
        fetched = fetch(self._session, f"{host}/robots.txt", self._limits, deadline=deadline)
        deadline.left()  # no answer in time is no answer: the next image asks again
        parser = RobotFileParser()
        if fetched.content is not None:
            parser.parse(fetched.content.decode("utf-8", "replace").splitlines())
        elif fetched.status.startswith(("http 5", "http 429")):
            parser.parse(["User-agent: *", "Disallow: /"])
        else:
            return None
        return parser


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


def store(log: DownloadLog, class_name: str, url: str, page: str, fetched: Fetched) -> Record:
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
        robots=fetched.robots,
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
            for target, info in _safe_targets(archive, infos).items():
                path = temporary / target
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as sink:
                    for chunk in _entry(opened, info):
                        left -= len(chunk)
                        if left < 0:
                            raise FreezeAsGuardError(f"{archive} unpacks to more than it claims; it was not unpacked")
                        sink.write(chunk)
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise FreezeAsGuardError(f"{archive} is no readable zip archive: {error}; fetch it again") from error


def _safe_targets(archive: Path, infos: list[zipfile.ZipInfo]) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The files to write, by their place below the folder; an entry that cannot have its own place is refused."""
    targets: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.orig_filename.replace("\\", "/")
        target = PurePosixPath(name)
        long = len(name.encode()) > 1000 or any(len(part.encode()) > 255 for part in target.parts)
        outside = target.is_absolute() or ".." in target.parts or not target.parts
        if outside or long or "\0" in name or stat.S_ISLNK(info.external_attr >> 16):
            raise FreezeAsGuardError(f"{archive} holds an unsafe entry {info.filename[:100]!r}; it was not unpacked")
        if info.flag_bits & 1:
            raise FreezeAsGuardError(f"{archive}: {info.filename!r} is encrypted; unpack it yourself and zip it anew")
        if target in targets:
            raise FreezeAsGuardError(f"{archive} holds {info.filename!r} twice; it was not unpacked")
        if not name.endswith("/"):
            targets[target] = info
    if both := targets.keys() & {parent for target in targets for parent in target.parents}:
        raise FreezeAsGuardError(f"{archive} holds {str(min(both))!r} as file and folder; it was not unpacked")
    return targets


def _entry(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The bytes of an entry; its decompressors have no common error, bz2's even looks like a disk's."""
    try:
        with opened.open(info) as source:
            while chunk := source.read(CHUNK_BYTES):
                yield chunk
    except Exception as error:
        raise zipfile.BadZipFile(f"{info.filename!r}: {error}") from error


def verify_sha256(path: Path, expected: str | None, called: str | None = None, told_by: str = "params.yaml") -> str:
    """Refuse a file whose content is not what is `told_by` somebody; returns its hash, also where nothing is told."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if expected is not None and found != expected:
        raise FreezeAsGuardError(
            f"{called or path} has sha256 {found}, {told_by} says {expected}; fetch it again or correct the sha256"
        )
    return found


def fetch_to_file(
    url: str,
    path: Path,
    limits: Limits,
    sha256: str | None,
    *,
    told_by: str = "params.yaml",
    by_hand: str = "Download it by hand and set archive.path to the file",
) -> str:
    """One large file, never in memory; it stands at `path` once it is whole and has the hash. Returns its hash.

    What an ended exchange has brought waits beside it (`.NAME.part`), and the next one goes on there, if the server
    still has the same file: its ETag or date is kept with it.

    Args:
        sha256: None where this is the first fetch of all, which no hash is known for.
    """
    part, note = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.part.validator")
    path.parent.mkdir(parents=True, exist_ok=True)
    with explain_full_disk(path), tqdm(desc=path.name, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        fetched = _go_on(url, part, note, limits, bar)
        if fetched.status == "http 416":  # it has no more bytes than are here: they may be of another file
            part.unlink()
            fetched = _go_on(url, part, note, limits, bar)
    if fetched.status.startswith("too large"):
        part.unlink()
        note.unlink(missing_ok=True)
    if fetched.status != "ok":
        again = "; the next run goes on where it stopped" if part.exists() and not fetched.is_final else ""
        raise FreezeAsGuardError(f"cannot fetch {url}: {fetched.status}{again}. {by_hand}")
    note.unlink(missing_ok=True)
    try:
        digest = verify_sha256(part, sha256, called=url, told_by=told_by)
    except FreezeAsGuardError:
        part.unlink()
        raise
    os.replace(part, path)
    return digest


def _go_on(url: str, part: Path, note: Path, limits: Limits, bar: tqdm[Any]) -> Fetched:
    """Ask for what `part` lacks; a server that does not know it sends the whole."""
    validator = note.read_text() if note.is_file() else ""
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}  # bytes that can be counted
    with requests.Session() as session, part.open("ab") as sink:
        if start := sink.tell() if validator else 0:
            headers |= {"Range": f"bytes={start}-", "If-Range": validator}

        def begin(response: requests.Response) -> int:
            there = start if response.status_code == 206 else 0
            if there and not response.headers.get("Content-Range", "").startswith(f"bytes {there}-"):
                raise Ended("refused: another range than the one that was asked for")
            sink.truncate(there)
            etag, date = response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")
            note.write_text("" if etag.startswith("W/") else etag or date)
            length = response.headers.get("Content-Length", "")
            bar.reset(there + int(length) if length.isdecimal() else None)
            bar.update(there)
            return there

        counted = cast(BinaryIO, CallbackIOWrapper(bar.update, sink, "write"))
        return transfer(session, url, limits, counted, headers=headers, begin=begin)
