"""Crawling with icrawler: search engines, any result page, or a list of URLs.

icrawler feeds and parses; the downloads are ours (`download.fetch`), so that every engine gets the same
limits, the same names and the same log. Engines change often: a crawl that finds nothing says so.
"""

from __future__ import annotations

import logging
import os
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus, urljoin

from freezeasguard.data.download import (
    DownloadLog,
    Fetched,
    LimitedSession,
    Limits,
    Robots,
    fetch,
    refuse_address,
    store,
)
from freezeasguard.errors import FreezeAsGuardError

if TYPE_CHECKING:
    from freezeasguard.settings.params import Crawl

QUEUE_TIMEOUT_S = 1


class _Images(HTMLParser):
    """The addresses of a page's images: <img src> and links to image files."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        address = values.get("src") if tag == "img" else values.get("href") if tag == "a" else None
        if address and (tag == "img" or address.lower().split("?")[0].endswith((".jpg", ".jpeg", ".png", ".webp"))):
            self.found.append(address)


def crawl(config: Crawl, folder: Path) -> DownloadLog:
    """Fetch what is missing for every class into `folder`; returns the log of all that was ever tried."""
    log = DownloadLog(folder / "log.jsonl")
    for class_name, query in config.classes.items():
        have = sum(r.status == "ok" and log.is_done(class_name, r.url) for r in log if r.class_name == class_name)
        if have < query.images:
            _crawl_class(config, class_name, log, query.images - have)
    if not any(record.status == "ok" for record in log):
        reasons = sorted({record.status for record in log}) or ["the engine returned no image addresses"]
        raise FreezeAsGuardError(
            f"crawl: the engine {config.engine} brought no image ({'; '.join(reasons[:5])}). Engines change often: "
            "try another one, or set engine to url-list"
        )
    return log


def _crawl_class(config: Crawl, class_name: str, log: DownloadLog, missing: int) -> None:
    from icrawler import Parser
    from icrawler.builtin import (
        BaiduImageCrawler,
        BingImageCrawler,
        FlickrImageCrawler,
        GoogleImageCrawler,
        UrlListCrawler,
    )
    from icrawler.crawler import Crawler
    from icrawler.downloader import Downloader
    from icrawler.feeder import Feeder

    query = config.classes[class_name]
    limits = Limits(config.max_bytes, config.timeout_s, config.allow_private)
    lock = threading.Lock()
    fetched_now = 0

    class LimitedDownloader(Downloader):
        """Fetches through `download.fetch`; icrawler's own would take any size, address and duration."""

        robots: Robots | None = None

        def download(self, task: dict[str, Any], *_: Any, **__: Any) -> bool:  # pyright: ignore
            nonlocal fetched_now
            url = str(task["file_url"])
            with lock:
                if fetched_now >= missing:
                    self.signal.set(reach_max_num=True)
                    return False
                if log.is_done(class_name, url):
                    return False
                if self.robots is None:
                    self.robots = Robots(self.session, limits)
                note = self.robots.note(url) if refuse_address(url, config.allow_private) is None else "none"
            if note == "disallowed" and config.respect_robots:
                fetched = Fetched("refused: robots.txt", url)
            else:
                fetched = fetch(self.session, url, limits)
            with lock:
                store(log, class_name, url, str(task.get("page", "")), fetched, note)
                if fetched.content is not None:
                    fetched_now += 1
                    self.fetched_num += 1
            return fetched.content is not None

        def worker_exec(self, max_num: int, *_: Any, **__: Any) -> None:  # pyright: ignore
            super().worker_exec(max_num, queue_timeout=QUEUE_TIMEOUT_S)

    class PageFeeder(Feeder):
        def feed(self, template: str, keyword: str, pages: int) -> None:  # pyright: ignore
            for page in range(pages):
                self.out_queue.put(template.format(query=quote_plus(keyword), page=page))

    class PageParser(Parser):
        def parse(self, response: Any) -> list[dict[str, str]]:  # pyright: ignore
            images = _Images()
            images.feed(response.text)
            addresses = dict.fromkeys(urljoin(response.url, a) for a in images.found)
            return [{"file_url": address, "page": response.url} for address in addresses]

    logging.getLogger("icrawler").setLevel(logging.ERROR)
    common: dict[str, Any] = dict(downloader_cls=LimitedDownloader, storage={"root_dir": str(log.path.parent)})
    common |= {"downloader_threads": config.threads, "log_level": logging.ERROR}

    def run(crawler: Any, **how: Any) -> None:
        """Result pages keep to the limits as well, whatever the engine."""
        crawler.parser.session = LimitedSession(crawler.session, limits)
        crawler.crawl(**how)

    filters = {"license": config.licence} if config.licence else None
    if config.engine == "url-list":
        urls = [url for url in query.urls if not log.is_done(class_name, url)]
        if urls:
            run(UrlListCrawler(**common), url_list=urls, max_num=len(urls))
        return
    if config.engine == "page":
        crawler = Crawler(feeder_cls=PageFeeder, parser_cls=PageParser, **common)
        feeder = {"template": config.search_url, "keyword": query.query, "pages": config.pages}
        run(crawler, feeder_kwargs=feeder, downloader_kwargs={"max_num": missing})
        return
    if config.engine == "flickr":
        key = os.environ.get("FLICKR_API_KEY")
        if not key:
            raise FreezeAsGuardError("crawl: the engine flickr needs the environment variable FLICKR_API_KEY")
        options = {"license": config.licence} if config.licence else {}
        run(FlickrImageCrawler(apikey=key, **common), max_num=missing, text=query.query, **options)
        return
    engine = {"google": GoogleImageCrawler, "bing": BingImageCrawler, "baidu": BaiduImageCrawler}[config.engine]
    # Ask for more than is missing: some addresses are known, refused or dead.
    run(engine(**common), keyword=query.query, filters=filters, max_num=min(1000, 3 * missing))
