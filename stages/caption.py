"""Give every image its caption: edited by hand, shipped by its source, or made by BLIP-2."""

import pandas as pd

from freezeasguard.commands import DATA, load, run
from freezeasguard.data.caption import CaptionConfig, caption_images, name_only, read_edits
from freezeasguard.data.manifest import read_manifest
from freezeasguard.files import folder_atomically, write_json


def main(domain: str) -> None:
    params = load()
    manifest = read_manifest(DATA / "raw" / domain)
    usable: pd.DataFrame = manifest.loc[manifest["status"] == "ok", ["path", "class", "subject", "caption", "sha256"]]
    block = params.domains[domain].caption
    usable = usable if block else name_only(usable)
    config = CaptionConfig(**block.model_dump() if block else {}, device=params.device)
    edits = read_edits(DATA / "edits" / f"{domain}.csv")
    progress = DATA / "downloads" / domain / "captions.jsonl"
    table, counts = caption_images(usable, DATA / "raw" / domain, config, progress, edited=edits)
    with folder_atomically(DATA / "captioned" / domain) as out:
        table.to_csv(out / "captions.csv", index=False)
        write_json(out / "counts.json", counts)
    print(f"{domain}: " + ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in counts.items()))


if __name__ == "__main__":
    run(main)
