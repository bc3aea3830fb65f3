"""A case's images and captions as latents and embeddings, encoded once for every trainer."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

from freezeasguard.data.split import assign_sides, read_split
from freezeasguard.files import folder_atomically, write_json
from freezeasguard.models.diffusion import encode_images, encode_text, load_text, load_vae, tokenize
from freezeasguard.models.images import read_images
from freezeasguard.settings.resolve import EncodeSettings

CHUNK = 64
THREADS = 2
"""However many cores there are: the VAE's latents differ in their last bits with the number of threads."""


def encode_case(settings: EncodeSettings, model: Path, raw: Path, splits: Path, out: Path) -> None:
    """Write latents (both flips), text embeddings, the empty prompt, and an index row an image."""
    table = read_split(splits)
    classes = sorted(set(table["class"]))
    sides = assign_sides(classes, settings.illegal, settings.legal, settings.seed, roles=settings.roles)
    table = table[table["class"].isin(sides)].reset_index(drop=True)
    index = table.assign(row=range(len(table)), side=[sides[c] for c in table["class"]])
    torch.set_num_threads(THREADS)
    vae = load_vae(model)
    latents = []
    for start in tqdm(range(0, len(index), CHUNK), desc="encoding images"):
        images = read_images(raw / path for path in index["path"].iloc[start : start + CHUNK])
        latents.append(torch.stack([encode_images(vae, images), encode_images(vae, images.flip(3))], dim=1))
    tokenizer, encoder = load_text(model)
    ids, n_truncated = tokenize(tokenizer, [*index["caption"], ""])
    text = encode_text(encoder, ids)
    with folder_atomically(out) as temporary:
        tensors = {"latents": torch.cat(latents), "text": text[:-1].contiguous(), "empty_text": text[-1].contiguous()}
        save_file(tensors, temporary / "latents.safetensors")
        columns = ["row", "side", "class", "subject", "part", "path", "caption", "sha256"]
        index[columns].to_csv(temporary / "index.csv", index=False)
        counts = index.groupby(["side", "part"]).size()
        write_json(
            temporary / "counts.json",
            {"captions_truncated": n_truncated, **{f"{side}/{part}": int(n) for (side, part), n in counts.items()}},
        )
