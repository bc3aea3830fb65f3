"""What a crawl of the web has brought, now and before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from freezeasguard.data.names import slug
from freezeasguard.data.sources.base import Item, spoken
from freezeasguard.settings.params import Domain


def items(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """What the crawl has brought, now and before; failures keep their reason."""
    from freezeasguard.data.sources.engines import crawl

    config = domain.crawl
    assert config is not None
    for record in crawl(config, downloads):
        if record.class_name not in config.classes:
            continue
        yield Item(
            slug(record.class_name),
            config.classes[record.class_name].subject or spoken(record.class_name),
            downloads / record.file if record.status == "ok" else None,
            record.url,
            f"{config.engine} filter: {config.licence}" if config.licence else "not stated",
            page=record.page,
            robots=record.robots,
            time=record.time,
            status=record.status,
        )
