"""Collect a domain's images, cleaned, with a manifest of source, licence and hash."""

from freezeasguard.commands import DATA, load, run
from freezeasguard.data.collect import collect


def main(domain: str) -> None:
    params = load()
    manifest = collect(params.domains[domain], DATA / "raw" / domain, DATA / "downloads" / domain, params.seed)
    # A reason is what stands before the colon or the word "of": counts of a kind, not of every file.
    kinds = manifest["status"].str.replace(r"(:| of ).*", "", regex=True).value_counts()
    print(f"{domain}: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))


if __name__ == "__main__":
    run(main)
