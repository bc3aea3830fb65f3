"""Divide each class into mask-learning, adaptation and held-out images, disjoint by content and looks."""

import pandas as pd
from PIL import Image

from freezeasguard.commands import DATA, load, run
from freezeasguard.data.split import perceptual_hashes, split
from freezeasguard.files import folder_atomically


def main(domain: str) -> None:
    params = load()
    captioned = pd.read_csv(DATA / "captioned" / domain / "captions.csv", keep_default_na=False)
    raw = DATA / "raw" / domain
    images = [Image.open(raw / path).convert("RGB") for path in captioned["path"]]
    table = split(captioned, perceptual_hashes(images), params.domains[domain], params.seed)
    with folder_atomically(DATA / "splits" / domain) as out:
        table.to_csv(out / "split.csv", index=False)
    print(
        f"{domain}: {table['part'].value_counts().to_dict()}, {len(captioned) - len(table)} left out as near-duplicates"
    )


if __name__ == "__main__":
    run(main)
