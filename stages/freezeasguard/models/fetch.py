"""Model folders in diffusers' layout: complete, at a pinned revision, known by the hash of their weights."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import folder_atomically, write_json
from freezeasguard.settings.params import Model

KEPT = (".safetensors", ".json", ".txt")
"""Never pickles."""
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def check_model_folder(folder: Path) -> Path:
    """The folder, if every part of a diffusers model is there with its weights."""
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    for part in ("unet", "vae", "text_encoder"):
        if part not in missing and not any((folder / part).glob("*.safetensors")):
            missing.append(f"{part}/*.safetensors")
    if missing:
        remedy = f"restore the shipped model with `git checkout -- {folder}`"
        if folder.parent.name == "fetched":
            remedy = f"run `dvc repro -f fetch@{folder.name}`"
        raise FreezeAsGuardError(
            f"model folder {folder} lacks {', '.join(missing)}; {remedy}, or point `models` in params.yaml at a "
            "complete diffusers folder"
        )
    return folder


def fetch_model(spec: Model, out: Path) -> None:
    """Bring a model to `out`, whole: a folder is copied, a hub repository fetched at its pinned revision.

    So a model is an output of DVC like any other: a pull, or an experiment elsewhere, finds its weights. `model.json`
    says by hash which they are.
    """
    with folder_atomically(out) as temporary:
        if spec.path is not None:
            _copy(check_model_folder(spec.path), temporary)
        else:
            _download(spec, temporary)
        told = {"source": str(spec.path or spec.repo), "revision": spec.revision}
        write_json(temporary / "model.json", {**told, "files": weight_hashes(check_model_folder(temporary))})


def _copy(folder: Path, out: Path) -> None:
    for part in PARTS:
        for path in sorted((folder / part).iterdir()):
            if path.suffix in KEPT:
                (out / part).mkdir(exist_ok=True)
                shutil.copyfile(path, out / part / path.name)
    shutil.copyfile(folder / "model_index.json", out / "model_index.json")


def _download(spec: Model, out: Path) -> None:
    from huggingface_hub import snapshot_download

    assert spec.repo is not None
    allowed = ["model_index.json", *(f"{part}/*{suffix}" for part in PARTS for suffix in KEPT)]
    try:
        snapshot_download(
            spec.repo,
            revision=spec.revision,
            local_dir=out,
            allow_patterns=allowed,
            ignore_patterns=["*.fp16.*", "*.non_ema.*"],  # other copies of the same weights
        )
    except Exception as error:  # the hub's, the network's and the disk's errors have no common class
        raise FreezeAsGuardError(
            f"cannot fetch {spec.repo} at revision {spec.revision}: {error}. Download that revision elsewhere from "
            f"https://huggingface.co/{spec.repo}, and set the model's path in params.yaml to its folder"
        ) from error
    shutil.rmtree(out / ".cache", ignore_errors=True)  # the hub client's notes


def weight_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight and configuration file, by its path in the folder."""
    hashes = {}
    for name in ("model_index.json", *PARTS):
        for path in sorted([folder / name, *(folder / name).rglob("*")]):
            if path.is_file() and path.suffix in KEPT:
                with path.open("rb") as file:
                    hashes[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
