"""Collect a domain's images with a manifest of source, licence and hash."""

from freezeasguard.data.sources import collect
from freezeasguard.stage import DATA, load, run


def main(domain: str) -> None:
    params = load()
    manifest = collect(params.domains[domain], DATA / "raw" / domain, params.seed)
    counts = manifest["status"].value_counts()
    print(f"{domain}: " + ", ".join(f"{n} {status}" for status, n in counts.items()))


if __name__ == "__main__":
    run(main)
