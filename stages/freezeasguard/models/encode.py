"""A case's images and captions as latents and embeddings, encoded once for every trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

from freezeasguard.checkpoints import CHECKPOINTS, Pieces
from freezeasguard.data.split import assign_sides, read_split, rows_of_sides
from freezeasguard.files import folder_atomically, write_atomically, write_json
from freezeasguard.models.computing import configure
from freezeasguard.models.diffusion import (
    encode_images,
    encode_text,
    load_text,
    load_vae,
    model_hash,
    named_tensors,
    tokenize,
)
from freezeasguard.models.images import read_images
from freezeasguard.reading import read_tensors
from freezeasguard.settings.resolve import EncodeSettings

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 64
THREADS = 2
"""However many cores there are: the VAE's latents differ in their last bits with the number of threads."""


def encode_case(settings: EncodeSettings, model: Path, raw: Path, splits: Path, out: Path, device: str = "cpu") -> None:
    """Write latents (both flips), text embeddings, the empty prompt, and an index row an image.

    Everything in float32 (see `models.computing`). A killed run goes on after its last whole chunk of images.
    """
    table = read_split(splits)
    classes = sorted(set(table["class"]))
    sides = assign_sides(classes, settings.illegal, settings.legal, settings.seed, roles=settings.roles)
    index = rows_of_sides(table, sides, settings.learn_legal)
    index["row"] = range(len(index))
    torch.set_num_threads(THREADS)
    configure(settings.compute, device)
    vae = load_vae(model).to(device)  # pyright: ignore[reportArgumentType]
    pieces = Pieces(CHECKPOINTS / f"{out.name}-latents", chunks_identity(settings, vae, index, device))
    files = [pieces.path / f"{start:06d}.safetensors" for start in range(0, len(index), CHUNK)]
    for number, file in enumerate(tqdm(files, desc="encoding images")):
        if not file.is_file():
            images = read_images(raw / path for path in index["path"].iloc[number * CHUNK : (number + 1) * CHUNK])
            both = torch.stack([encode_images(vae, images), encode_images(vae, images.flip(3))], dim=1)
            with write_atomically(file) as temporary:
                save_file({"latents": both}, temporary)
    latents = [read_tensors(file, f"remove {pieces.path}", ["latents"])["latents"] for file in files]
    tokenizer, encoder = load_text(model)
    encoder.to(device)  # pyright: ignore[reportArgumentType]
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
    pieces.clear()


def chunks_identity(settings: EncodeSettings, vae: torch.nn.Module, index: pd.DataFrame, device: str) -> dict[str, Any]:
    """All that the latents depend on."""
    return {
        "compute": settings.compute.model_dump(),
        "code": settings.code,
        "vae": model_hash(named_tensors(vae)),
        "images": index["sha256"].tolist(),
        "device": torch.device(device).type,
        "torch": torch.__version__,
    }
