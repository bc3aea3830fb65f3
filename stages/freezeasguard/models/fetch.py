"""Model folders in diffusers' layout: complete, at a pinned revision, known by the hash of their weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.settings.params import Model

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def check_model_folder(folder: Path) -> Path:
    """The folder, if every part of a diffusers model is there with its weights."""
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    for part in ("unet", "vae", "text_encoder"):
        if part not in missing and not any((folder / part).glob("*.safetensors")):
            missing.append(f"{part}/*.safetensors")
    if missing:
        raise FreezeAsGuardError(
            f"model folder {folder} lacks {', '.join(missing)}; restore the shipped model with "
            f"`git checkout -- {folder}`, or point `models` in params.yaml at a complete diffusers folder"
        )
    return folder


def fetch_model(spec: Model, folder: Path) -> None:
    """Bring a hub model to `folder` at its pinned revision; what is there already is not fetched again."""
    from huggingface_hub import snapshot_download

    assert spec.repo is not None
    patterns = ["*.json", "*.txt", *(f"{part}/*" for part in PARTS)]
    try:
        snapshot_download(spec.repo, revision=spec.revision, local_dir=folder, allow_patterns=patterns)
    except Exception as error:  # the hub's, the network's and the disk's errors have no common class
        raise FreezeAsGuardError(
            f"cannot fetch {spec.repo} at revision {spec.revision}: {error}. Download that revision elsewhere from "
            f"https://huggingface.co/{spec.repo} into {folder}, or set the model's path in params.yaml to its folder"
        ) from error


def weight_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight and configuration file, by its path in the folder."""
    hashes = {}
    for part in PARTS:
        for path in sorted((folder / part).rglob("*")):
            if path.suffix in (".safetensors", ".json", ".txt"):
                with path.open("rb") as file:
                    hashes[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
