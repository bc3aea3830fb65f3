"""Divide each class into mask-learning, adaptation and held-out images, disjoint by content and looks."""

from freezeasguard.commands import DATA, Domain, run
from freezeasguard.data.split import split_domain
from freezeasguard.settings.resolve import SplitSettings, read_settings


def main(domain: Domain) -> None:
    settings = read_settings(SplitSettings, f"split/{domain}")
    table, n_left_out = split_domain(
        settings, DATA / "captioned" / domain, DATA / "raw" / domain, DATA / "splits" / domain
    )
    print(f"{domain}: {table['part'].value_counts().to_dict()}, {n_left_out} left out as near-duplicates")


if __name__ == "__main__":
    run(main)
