"""Give every image its caption: edited by hand, shipped by its source, or made by BLIP-2."""

from freezeasguard.commands import DATA, Domain, machine, run
from freezeasguard.data.caption import caption_domain
from freezeasguard.settings.resolve import CaptionSettings, read_settings


def main(domain: Domain) -> None:
    block = read_settings(CaptionSettings, f"caption/{domain}").caption
    device = machine().device if block else "cpu"
    counts = caption_domain(
        block,
        DATA / "raw" / domain,
        DATA / "edits" / f"{domain}.csv",
        DATA / "downloads" / domain / "captions.jsonl",
        DATA / "captioned" / domain,
        device,
    )
    print(f"{domain}: " + ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in counts.items()))


if __name__ == "__main__":
    run(main)
