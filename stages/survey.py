"""Counts of a domain's images - in, out and why - with Figure 15 and a contact sheet."""

from freezeasguard.commands import DATA, REPORTS, load, run
from freezeasguard.data.manifest import read_manifest
from freezeasguard.data.split import read_split
from freezeasguard.files import write_json
from freezeasguard.reports.survey import class_figure, contact_sheet, count_images


def main(domain: str) -> None:
    params = load()
    raw = DATA / "raw" / domain
    table = read_split(DATA / "splits" / domain)
    counts = count_images(read_manifest(raw), table)
    out = REPORTS / "data" / domain
    class_figure(counts, out / "classes.png")
    contact_sheet(table, raw, out / "contact.png", blurred=params.domains[domain].explicit)
    write_json(out / "counts.json", counts)
    print(f"{domain}: {counts['in']} in, {counts['kept']} kept, {counts['rejected'] or 'none rejected'}")


if __name__ == "__main__":
    run(main)
