"""Collect a domain's images, cleaned, with a manifest of source, licence and hash."""

from freezeasguard.commands import DATA, Domain, run
from freezeasguard.data.crawl import crawl_domain
from freezeasguard.settings.resolve import CrawlSettings, read_settings


def main(domain: Domain) -> None:
    settings = read_settings(CrawlSettings, f"crawl/{domain}")
    manifest = crawl_domain(settings.domain, DATA / "raw" / domain, DATA / "downloads" / domain, settings.seed)
    # A reason is what stands before the colon or the word "of": counts of a kind, not of every file.
    kinds = manifest["status"].str.replace(r"(:| of ).*", "", regex=True).value_counts()
    print(f"{domain}: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))


if __name__ == "__main__":
    run(main)
