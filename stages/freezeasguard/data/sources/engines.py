"""Crawling with icrawler: search engines, any result page, or a list of URLs.

icrawler feeds and parses; the downloads are ours (`download.fetch`), so that every engine gets the same
limits, the same names and the same log. Engines change often: a crawl that finds nothing says so.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

from freezeasguard.data.download import (
    DownloadLog,
    LimitedSession,
    Limits,
    Robots,
    absolute,
    fetch,
    store,
)
from freezeasguard.data.sources.base import as_utf8
from freezeasguard.errors import FreezeAsGuardError

if TYPE_CHECKING:
    from freezeasguard.settings.params import Crawl

QUEUE_TIMEOUT_S = 1


def image_addresses(page: str, text: str) -> list[str]:
    """Of a page's images, each once: <img src> and links to image files."""
    from bs4 import BeautifulSoup

    found: dict[str, None] = {}
    for tag in BeautifulSoup(text, "lxml").find_all(["img", "a"]):
        address = str(tag.get("src" if tag.name == "img" else "href") or "").strip()
        is_file = address.lower().split("?")[0].endswith((".jpg", ".jpeg", ".png", ".webp"))
        if address and (is_file or tag.name == "img"):
            found[absolute(page, address)] = None
    return list(found)


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
    failures: list[OSError | FreezeAsGuardError] = []

    class LimitedDownloader(Downloader):
        """Fetches through `download.fetch`; icrawler's own would take any size, address and duration."""

        robots: Robots | None = None

        def download(self, task: dict[str, Any], *_: Any, **__: Any) -> bool:  # pyright: ignore
            nonlocal fetched_now
            url = as_utf8(str(task["file_url"]))
            with lock:
                if fetched_now >= missing:
                    self.signal.set(reach_max_num=True)
                    return False
                if log.is_done(class_name, url):
                    return False
                if self.robots is None:
                    self.robots = Robots(self.session, limits, config.respect_robots)
            fetched = fetch(self.session, url, limits, robots=self.robots)
            with lock:
                try:
                    store(log, class_name, url, str(task.get("page", "")), fetched)
                except (OSError, FreezeAsGuardError) as error:  # of this machine, as a full disk
                    failures.append(error)
                    self.signal.set(reach_max_num=True)
                    return False
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
            addresses = image_addresses(response.url, response.text)
            return [{"file_url": address, "page": response.url} for address in addresses]

    logging.getLogger("icrawler").setLevel(logging.ERROR)
    common: dict[str, Any] = dict(downloader_cls=LimitedDownloader, storage={"root_dir": str(log.path.parent)})
    common |= {"downloader_threads": config.threads, "log_level": logging.ERROR}

    def run(crawler: Any, **how: Any) -> None:
        """Result pages keep to the limits as well, whatever the engine; one that it cannot read costs itself alone."""
        crawler.parser.session = LimitedSession(crawler.session, limits)
        engine_parse = crawler.parser.parse

        def parse(response: Any, **options: Any) -> Iterator[Any]:
            try:
                yield from engine_parse(response, **options) or ()
            except Exception as error:
                print(f"crawl: a result page of {config.engine} cannot be read: {error!r}", file=sys.stderr)

        crawler.parser.parse = parse
        crawler.crawl(**how)
        for failure in failures:
            raise FreezeAsGuardError(f"crawl: cannot keep what was fetched: {failure}") from failure

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
