"""Give every image its caption: the one that its source ships."""

from freezeasguard.data.sources import read_manifest
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import folder_atomically
from freezeasguard.stage import DATA, load, run


def main(domain: str) -> None:
    load()
    manifest = read_manifest(DATA / "raw" / domain)
    usable = manifest[manifest["status"] == "ok"]
    empty = usable[usable["caption"] == ""]
    if len(empty):
        raise FreezeAsGuardError(f"{domain}: {len(empty)} images have no caption, e.g. {empty['path'].iloc[0]}")
    with folder_atomically(DATA / "captioned" / domain) as out:
        usable[["path", "class", "subject", "caption", "sha256"]].to_csv(out / "captions.csv", index=False)


if __name__ == "__main__":
    run(main)
