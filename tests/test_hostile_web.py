"""What comes from the web may lie: about where it is, how long it takes, and what may be read.

Every connection ends at a server on this machine: `loopback.Internet` stands in for the system's resolver and
`connect`, so that a first hop is public by the checker's eye.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from freezeasguard.data import download
from freezeasguard.data.crawl import crawl_domain
from freezeasguard.data.download import (
    Deadline,
    DownloadLog,
    Ended,
    Limits,
    Robots,
    fetch,
    fetch_to_file,
    is_public,
    read_address,
    resolve,
)
from freezeasguard.data.sources.engines import image_addresses
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.settings.params import Crawl, Domain, Query
from loopback import Internet, jpeg, raw_server, serve

PUBLIC, OTHER = "93.184.216.34", "93.184.216.35"
HOSTS = {
    "public.example": [PUBLIC],
    "other.example": ["2606:2800:220:1::1", OTHER],
    "inner.example": ["192.168.1.5"],
    "first.example": [PUBLIC, "10.0.0.1"],
    "last.example": ["fd00::1", PUBLIC],
}
START = "http://public.example/a"
LIMITS = Limits(10**6, 30)


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Internet]:
    internet = Internet(monkeypatch, dict(HOSTS), {})
    yield internet
    internet.close()


def got(url: str, **how: Any) -> download.Fetched:
    return fetch(requests.Session(), url, LIMITS, **how)


# --- where it is ----------------------------------------------------------------------------------

ELSEWHERE = {
    "http://127.0.0.1/a": "refused: private address",
    "//169.254.169.254/meta": "refused: private address",
    "http://inner.example/a": "refused: private address",
    "https://first.example/a": "refused: private address",
    "http://last.example/a": "refused: private address",
    "http://[64:ff9b::7f00:1]/a": "refused: private address",
    "http://[2002:7f00:1::]/a": "refused: private address",
    "http://[::127.0.0.1]/a": "refused: private address",
    "http://[::ffff:10.1.2.3]/a": "refused: private address",
    "http://239.255.255.250/a": "refused: private address",
    "file:///etc/passwd": "refused: file scheme",
    "http://127.0.0.1:80\\@8.8.8.8/": "refused: user name in the address",
    "http://127.0.0.1:80\\/8.8.8.8/": "refused: malformed address",
    "http://127.0.0.1\\.other.example/": "refused: malformed address",
    "http://me:secret@other.example/": "refused: user name in the address",
    "http://%6fther.example/": "refused: malformed address",
    "http://[": "refused: malformed address",
    "http://other.example:99999/": "refused: malformed address",
}


@pytest.mark.parametrize("target", ELSEWHERE)
def test_no_redirect_of_a_public_host_leads_where_an_address_may_not(internet: Internet, target: str) -> None:
    for pages in ({START: target}, {START: "http://other.example/b", "http://other.example/b": target}):
        internet.pages, internet.asked, internet.connected = pages, [], []
        outcome = got(START)
        assert outcome.status == ELSEWHERE[target] and outcome.content is None
        assert internet.asked == list(pages)  # the target is never sent a request,
        assert set(internet.connected) <= {PUBLIC, "2606:2800:220:1::1", OTHER}  # nor connected to
    internet.asked = []
    if "://" in target:
        assert got(target).status == ELSEWHERE[target] and not internet.asked


def test_a_public_host_may_redirect_to_another(internet: Internet) -> None:
    internet.pages = {START: "http://other.example/b", "http://other.example/b": b"image"}
    outcome = got(START)
    assert outcome.content == b"image" and outcome.url == "http://other.example/b"
    assert internet.connected == [PUBLIC, "2606:2800:220:1::1", OTHER]  # the next address where one is out of reach


def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_checked(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    internet.pages = {START: b"image"}
    answers, resolver = iter([PUBLIC]), socket.getaddrinfo

    def rebinding(host: str, port: int, *how: Any, **more: Any) -> list[tuple[Any, ...]]:
        """Public to whoever asks first, this machine to whoever asks again."""
        return resolver(next(answers, "127.0.0.1") if host == "public.example" else host, port, *how, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert got(START).content == b"image" and internet.connected == [PUBLIC]
    assert got(START).status == "refused: private address" and internet.connected == [PUBLIC]


@pytest.mark.parametrize("host", ["first.example", "last.example"])
def test_every_address_of_a_name_is_checked(internet: Internet, host: str) -> None:
    assert got(f"http://{host}/a").status == "refused: private address" and not internet.connected
    assert [entry[4][0] for entry in resolve("http://other.example/a", False, Deadline(5))] == HOSTS["other.example"]
    assert resolve(f"http://{host}/a", True, Deadline(5))


def test_proxies_of_the_environment_are_not_asked(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    internet.hosts["proxy.example"] = [OTHER]
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://proxy.example:3128")
    internet.pages = {START: b"image"}
    assert got(START).content == b"image" and internet.connected == [PUBLIC]
    assert internet.resolved == ["public.example"]


def test_passwords_of_netrc_stay_here(internet: Internet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    sent: list[Any] = []
    monkeypatch.setattr(download.PinnedAdapter, "send", lambda _, request, **__: sent.append(request) or 1 / 0)
    assert got(START).status == "connection: ZeroDivisionError" and "Authorization" not in sent[0].headers


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:2800:220:1::1", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("0.0.0.0", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::8.8.8.8", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("64:ff9b:1::808:808", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("2002:808:808::", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("ff0e::1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) == public


def certificate(host: str, folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / f"{host}.pem"
    path.write_bytes(built.public_bytes(pem) + secret)
    return path


def test_https_names_its_host_and_checks_the_certificate(
    internet: Internet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = certificate("public.example", tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    named: list[str | None] = []
    heard: list[bytes] = []
    context.sni_callback = lambda _, name, __: named.append(name)
    listener = socket.create_server(("127.0.0.1", 0))
    internet.address = listener.getsockname()

    def answer() -> None:
        for _ in range(2):
            try:
                with context.wrap_socket(listener.accept()[0], server_side=True) as line:
                    heard.append(line.recv(4096))
                    line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nimage")
            except OSError:
                pass  # the client does not like the certificate

    threading.Thread(target=answer, daemon=True).start()
    assert got("https://public.example/a").content == b"image"
    assert b"\r\nHost: public.example\r\n" in heard[0] and internet.connected == [PUBLIC]
    assert got("https://other.example/a").status == "connection: SSLError"
    assert named == ["public.example", "other.example"] and len(heard) == 1
    listener.close()


# --- robots.txt -----------------------------------------------------------------------------------

FORBID = b"User-agent: *\nDisallow: /b\n"


@pytest.mark.parametrize(
    ("rules", "status", "note"),
    [
        (FORBID, "refused: robots.txt", "disallowed"),
        (b"User-agent: *\nDisallow: /c\n", "ok", "allowed"),
        (404, "ok", "allowed"),  # as the first host says
        (503, "refused: robots.txt", "disallowed"),  # RFC 9309: rules that cannot be had forbid
        (429, "refused: robots.txt", "disallowed"),
        (b"User-agent: *\nDisallow: http://[\n", "refused: robots.txt", "disallowed"),
        ("User-agent: *\nCrawl-delay: \N{SUPERSCRIPT TWO}\n".encode(), "refused: robots.txt", "disallowed"),
    ],
)
def test_robots_of_every_hop_are_read(internet: Internet, rules: Any, status: str, note: str) -> None:
    internet.pages = {START: "http://other.example/b", "http://other.example/b": b"image"}
    internet.pages |= {"http://public.example/robots.txt": FORBID, "http://other.example/robots.txt": rules}
    session = requests.Session()
    for respected in (True, False):
        internet.asked = []
        outcome = fetch(session, START, LIMITS, robots=Robots(session, LIMITS, respected))
        assert outcome.status == (status if respected else "ok") and outcome.robots == note
        assert ("http://other.example/b" in internet.asked) == (outcome.status == "ok")


def test_robots_that_do_not_answer_in_time_are_asked_again(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    internet.pages = {START: b"image", "http://public.example/robots.txt": b"User-agent: *\nDisallow: /\n"}
    session = requests.Session()
    robots = Robots(session, LIMITS)
    real = download.connect

    def slow(entry: Any, timeout_s: float) -> socket.socket:
        time.sleep(0.2)
        return real(entry, timeout_s)

    monkeypatch.setattr(download, "connect", slow)
    assert fetch(session, START, LIMITS, robots=robots, deadline=Deadline(0.1)).status.startswith("timeout")
    assert fetch(session, START, LIMITS, robots=robots).status == "refused: robots.txt"
    assert START not in internet.asked


# --- how long it takes ----------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"


def slow_headers(line: socket.socket) -> None:
    line.sendall(OK)
    for i in range(1000):
        line.sendall(f"X-{i}: 1\r\n".encode())
        time.sleep(0.02)


def keep_sending(line: socket.socket, piece: bytes) -> None:
    for _ in range(1000):
        line.sendall(piece)
        time.sleep(0.02)


def nothing_zipped(line: socket.socket) -> None:
    """Members of a gzip stream that unpack to nothing."""
    line.sendall(OK + b"Content-Encoding: gzip\r\n\r\n")
    keep_sending(line, gzip.compress(b""))


def drip(line: socket.socket) -> None:
    line.sendall(OK + b"\r\n")
    keep_sending(line, b"x")


def one_long_line(line: socket.socket) -> None:
    keep_sending(line, b"H")


def interim_answers(line: socket.socket) -> None:
    keep_sending(line, b"HTTP/1.1 100 Continue\r\n\r\n")


def chunked_drip(line: socket.socket) -> None:
    line.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    keep_sending(line, b"0")


def slow_redirects(line: socket.socket) -> None:
    time.sleep(0.25)
    line.sendall(b"HTTP/1.1 302 Found\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n")


def silence(_: socket.socket) -> None:
    time.sleep(20)


SLOW = (slow_headers, nothing_zipped, drip, one_long_line, interim_answers, chunked_drip, slow_redirects, silence)


@pytest.mark.parametrize(("answer", "scheme"), [*((answer, "http") for answer in SLOW), (silence, "https")])
def test_the_time_limit_holds_over_the_whole_exchange(answer: Callable[[socket.socket], None], scheme: str) -> None:
    start = time.monotonic()
    with raw_server(answer) as port:
        outcome = fetch(requests.Session(), f"{scheme}://127.0.0.1:{port}/a", Limits(10**6, 0.4, allow_private=True))
    assert outcome.status == "timeout: over 0.4 s" and time.monotonic() - start < 10


def test_a_resolver_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(20) or [])
    start = time.monotonic()
    assert fetch(requests.Session(), START, Limits(10**6, 0.3)).status == "timeout: over 0.3 s"
    assert time.monotonic() - start < 10


def test_slow_robots_count(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, session = Limits(10**6, 0.4, allow_private=True), requests.Session()
    with raw_server(slow_headers) as port:
        start = time.monotonic()
        outcome = fetch(session, f"http://127.0.0.1:{port}/a", limits, robots=Robots(session, limits))
    assert outcome.status == "timeout: over 0.4 s" and time.monotonic() - start < 10


def test_a_timer_ends_with_its_exchange() -> None:
    with serve() as (address, _):
        fetch(requests.Session(), f"{address}/good/1.jpg", Limits(10**6, 60, allow_private=True))
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer) and thread.is_alive()]


def malformed(content: bytes) -> Callable[[socket.socket], None]:
    return lambda line: line.sendall(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"HTTP/1.1 abc OK\r\n\r\n",
        OK + b"Content-Length: 10\r\n\r\nshort",
        OK + b"Content-Length: -1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        OK + b"Content-Encoding: gzip\r\n\r\nno gzip",
        OK + b"Content-Encoding: gzip, " + b"gzip, " * 50 + b"gzip\r\n\r\nx",
        OK + b"X: " + b"x" * 70_000 + b"\r\n\r\n",
        OK + b"".join(b"X-%d: 1\r\n" % i for i in range(200)) + b"\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\n\r\n",
        OK + b"Set-Cookie: \xff=\xfe; expires=never; domain=[\r\nContent-Length: -5\r\n\r\n",
    ],
)
def test_any_answer_becomes_a_status(content: bytes) -> None:
    with raw_server(malformed(content)) as port:
        outcome = fetch(requests.Session(), f"http://127.0.0.1:{port}/a", Limits(10**6, 20, allow_private=True))
    assert outcome.status.partition(":")[0] in ("ok", "connection", "refused", "timeout")
    assert (outcome.status == "ok") == (outcome.content is not None)


def test_a_bomb_in_gzip_is_cut_short() -> None:
    bomb = gzip.compress(bytes(20_000_000))
    with raw_server(malformed(OK + b"Content-Encoding: gzip\r\n\r\n" + bomb)) as port:
        outcome = fetch(requests.Session(), f"http://127.0.0.1:{port}/a", Limits(10**6, 30, allow_private=True))
    assert outcome.status == "too large: over 1000000 bytes"


# --- one bad link costs itself alone ----------------------------------------------------------------


def test_links_of_broken_pages_are_found() -> None:
    text = '<![foo[x]]><img src=" a.jpg\n"><img><img src=""><a href="b.PNG?x"><a href=c.html><a><img src="http://["'
    text += '><p <img src="d.jpg"><!-- <img src="e.jpg"> --><img src="a.jpg">'
    found = image_addresses("http://h/p/", text)
    assert found[:3] == ["http://h/p/a.jpg", "http://h/p/b.PNG?x", "http://["] and "http://h/p/e.jpg" not in found


@pytest.mark.filterwarnings("ignore::bs4.MarkupResemblesLocatorWarning")
@settings(max_examples=300, deadline=None)
@given(st.text() | st.lists(st.sampled_from(["<img src=", "'", '"', ">", "<a href=", "http://", "[", "\\", "@", "\0"])))
def test_any_page_is_read(text: str | list[str]) -> None:
    assert isinstance(image_addresses("http://h/", "".join(text)), list)


URLS = st.text() | st.builds(
    "".join,
    st.lists(
        st.sampled_from(["http://", "https:", "//", "@", "\\", ":", "[", "]", "%", "::1", "127.0.0.1", "8.8.8.8", "#"])
        | st.text(max_size=3),
        max_size=8,
    ),
)


@settings(max_examples=1000, deadline=None)
@given(URLS)
@example("http://127.0.0.1:80\\@8.8.8.8/")
@example("http://8.8.8.8#@127.0.0.1/")
@example("HTTP://<")
@example("http://\uff11\uff12\uff17.0.0.1/")
def test_every_address_is_read_or_refused(url: str) -> None:
    """What is read is what `requests` will ask for, too."""
    try:
        host, port = read_address(url)
    except Ended as ended:
        assert str(ended).startswith("refused: ")
        return
    try:
        prepared = requests.Request("GET", url).prepare()
    except requests.RequestException:
        return
    parts = download.urlsplit(str(prepared.url))
    assert (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)) == (host.lower(), port or 80)


def log_of(tmp_path: Path, urls: list[str], **overrides: Any) -> DownloadLog:
    from freezeasguard.data.sources.engines import crawl

    settings = {"engine": "url-list", "classes": {"a": Query(urls=urls)}, "timeout_s": 20, "allow_private": True}
    return crawl(Crawl.model_validate({**settings, **overrides}), tmp_path)


def test_urls_that_no_file_can_hold_are_logged(tmp_path: Path) -> None:
    with serve() as (address, _):
        bad = ["http://h/\ud800", "http://h/\0", 'http://h/"\n,', "http://" + "h" * 5000]
        classes = {"a": Query(urls=["x"]).model_copy(update={"urls": [*bad, f"{address}/good/1.jpg"]})}
        config = Crawl(engine="url-list", classes={"a": Query(urls=["x"])}, timeout_s=20, allow_private=True)
        domain = Domain(source="crawl", crawl=config.model_copy(update={"classes": classes}))
        manifest = crawl_domain(domain, tmp_path / "raw", tmp_path / "d", 0)
    assert manifest["status"].tolist().count("ok") == 1 and len(manifest) == 5
    assert len(DownloadLog(tmp_path / "d/log.jsonl").records) == 5


def test_a_full_disk_ends_the_crawl_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from freezeasguard.data.sources import engines

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with serve() as (address, _):
        log_of(tmp_path, [f"{address}/good/1.jpg"])
        monkeypatch.setattr(engines, "store", full)
        with pytest.raises(FreezeAsGuardError, match="cannot keep what was fetched: .*No space left"):
            log_of(tmp_path, [f"{address}/good/{i}.jpg" for i in range(2, 9)])


def test_a_result_page_that_its_engine_cannot_read_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from icrawler.builtin import baidu

    with serve() as (address, _):
        good = b'{"data": [{"hoverURL": "%s/good/1.jpg"}]}' % address.encode()
        with serve({"/1": b"[]", "/2": b'{"data": [{"hoverURL": 5}, {"objURL": 5}]}', "/3": good}) as (results, _):

            def feed(self: Any, *_: Any, **__: Any) -> None:
                for page in (1, 2, 3):
                    self.out_queue.put(f"{results}/{page}")

            monkeypatch.setattr(baidu.BaiduFeeder, "feed", feed)
            log = log_of(tmp_path, [], engine="baidu", classes={"a": Query(query="a", images=1)})
    assert {record.url: record.status for record in log}[f"{address}/good/1.jpg"] == "ok"
    assert capsys.readouterr().err.count("a result page of baidu cannot be read") == 2


# --- large files ------------------------------------------------------------------------------------


def test_an_archive_is_streamed_and_kept_only_with_its_checksum(tmp_path: Path) -> None:
    block, blocks = b"x" * 2**20, 40
    right = hashlib.sha256(block * blocks).hexdigest()

    def answer(line: socket.socket) -> None:
        line.sendall(OK + b"Content-Length: %d\r\n\r\n" % (len(block) * blocks))
        for _ in range(blocks):
            line.sendall(block)

    limits = Limits(2**30, 30, allow_private=True)
    with raw_server(answer) as port:
        url = f"http://127.0.0.1:{port}/a.zip"
        with pytest.raises(FreezeAsGuardError, match=f"{url} has sha256 {right}, params.yaml says 00"):
            fetch_to_file(url, tmp_path / "d/a.zip", limits, "0" * 64)
        with pytest.raises(FreezeAsGuardError, match="too large: over 30000000 bytes"):
            fetch_to_file(url, tmp_path / "d/a.zip", Limits(30_000_000, 30, allow_private=True), right)
        assert not list((tmp_path / "d").iterdir())
        tracemalloc.start()
        fetch_to_file(url, tmp_path / "d/a.zip", limits, right)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (tmp_path / "d/a.zip").stat().st_size == 40 * 2**20 and peak < 8 * 2**20


def test_a_disk_that_fills_while_a_body_comes_is_no_fault_of_the_network() -> None:
    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    with serve() as (address, _), pytest.raises(OSError, match="No space left"):
        limits = Limits(10**6, 30, allow_private=True)
        download.transfer(requests.Session(), f"{address}/good/1.jpg", limits, Full())


def test_a_jpeg_comes_through_unchanged() -> None:
    with serve() as (address, _):
        outcome = fetch(requests.Session(), f"{address}/good/7.jpg", Limits(10**6, 30, allow_private=True))
    assert outcome.content == jpeg(7)
