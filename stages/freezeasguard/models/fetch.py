"""Model folders in diffusers' layout: complete, at a pinned revision, known by the hash of their weights."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import folder_atomically, link_or_copy, write_json
from freezeasguard.reading import read_json
from freezeasguard.settings.params import Model
from freezeasguard.settings.pins import needs_pin

KEPT = (".safetensors", ".json", ".txt")
"""Never pickles."""
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
WEIGHTS_NAME = re.compile(
    r"[^.]+(\.(?P<of_file>\w+))?(-\d+-of-\d+)?\.safetensors|[^.]+\.safetensors\.index(\.(?P<of_index>\w+))?\.json"
)
VERIFIED = "verified.json"
"""In a folder of the hub's files: which they are, and by which hashes."""


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


def fetch_model(spec: Model, out: Path, downloads: Path) -> None:
    """Bring a model to `out`, whole: a folder is copied, a hub repository fetched at its pinned revision.

    So a model is an output of DVC like any other: a pull, or an experiment elsewhere, finds its weights. `model.json`
    says by hash which they are.

    Args:
        downloads: where the hub's files are kept between runs, for a killed one to go on.
    """
    with folder_atomically(out) as temporary:
        if spec.path is not None:
            _copy(check_model_folder(spec.path), temporary)
        else:
            for name, path in download_model(spec, downloads).items():
                link_or_copy(path, temporary / name)  # no second copy of gigabytes
        told = {"source": str(spec.path or spec.repo), "revision": spec.revision}
        write_json(temporary / "model.json", {**told, "files": weight_hashes(check_model_folder(temporary))})


def _copy(folder: Path, out: Path) -> None:
    for part in PARTS:
        for path in sorted((folder / part).iterdir()):
            if path.suffix in KEPT:
                (out / part).mkdir(exist_ok=True)
                shutil.copyfile(path, out / part / path.name)
    shutil.copyfile(folder / "model_index.json", out / "model_index.json")


def download_model(spec: Model, downloads: Path) -> dict[str, Path]:
    """The hub model's files by their names in diffusers' layout, all of them below `downloads`."""
    assert spec.repo is not None and spec.revision is not None
    needs_pin(spec.revision, f"the revision of {spec.repo}")
    return bring_repository(spec.repo, spec.revision, downloads, one_variant, "set the model's path in params.yaml")


def one_variant(files: Collection[str]) -> dict[str, str]:
    """Of all files of a diffusers repository those of one copy of its weights: name in our folder -> theirs.

    The plain float32 safetensors; where a part has none, the one variant that it has, under the plain name.
    """
    chosen = {"model_index.json": "model_index.json"}
    for part in PARTS:
        own = [name for name in files if name.rpartition("/")[0] == part and name.endswith(KEPT)]
        plain = {name: name for name in own if not _variant(name)}
        if variants := {_variant(name) for name in own} - {""}:
            if not any(name.endswith(".safetensors") for name in plain) and len(variants) == 1:
                variant = variants.pop()
                plain |= {name.replace(f".{variant}", "", 1): name for name in own if _variant(name) == variant}
        chosen |= plain
    return chosen


def _variant(name: str) -> str:
    """fp16 of "unet/diffusion_pytorch_model.fp16.safetensors", of its shards and their index; else ""."""
    found = WEIGHTS_NAME.fullmatch(name.rpartition("/")[2])
    return (found["of_file"] or found["of_index"] or "") if found else ""


def bring_repository(
    repo: str, revision: str, folder: Path, choose: Callable[[Collection[str]], dict[str, str]], by_hand: str
) -> dict[str, Path]:
    """Have the chosen files of a hub repository in `folder`, each with the hash that the hub tells of large files.

    The hub's client shows progress. Files that a killed run has brought whole stay; the one that was under way comes
    again from its start, as huggingface_hub 2.4 names its temporary files anew. What was verified is only hashed again.

    Args:
        choose: of the repository's file names those to bring, by what we call them.
        by_hand: what to do where the hub cannot be reached.
    """
    note = folder / VERIFIED
    told = read_json(note, f"remove {note}") if note.is_file() else {}
    if (told.get("repo"), told.get("revision")) == (repo, revision):
        if all((folder / name).is_file() and sha256_of(folder / name) == sha for name, sha in told["sha256"].items()):
            return {ours: folder / theirs for ours, theirs in told["names"].items()}
    from huggingface_hub import HfApi, snapshot_download

    try:
        listed = HfApi().model_info(repo, revision=revision, files_metadata=True).siblings or []
        names = choose([file.rfilename for file in listed])
        snapshot_download(repo, revision=revision, local_dir=folder, allow_patterns=sorted(set(names.values())))
    except Exception as error:  # the hub's, the network's and the disk's errors have no common class
        said = " ".join(str(error).split())
        raise FreezeAsGuardError(
            f"cannot fetch {repo} at revision {revision}: {said}. What has come is in {folder}, and the next run goes "
            f"on there; or download that revision elsewhere from https://huggingface.co/{repo}, and {by_hand} to its "
            "folder"
        ) from error
    present = {ours: theirs for ours, theirs in names.items() if (folder / theirs).is_file()}
    hashes = {theirs: sha256_of(folder / theirs) for theirs in present.values()}
    for file in listed:
        expected = file.lfs.sha256 if file.lfs else None
        if expected and file.rfilename in hashes and hashes[file.rfilename] != expected:
            (folder / file.rfilename).unlink()
            raise FreezeAsGuardError(
                f"{folder / file.rfilename} has sha256 {hashes[file.rfilename]}, the hub says {expected}; it was "
                "removed: run this again"
            )
    for cut in folder.rglob("*.incomplete"):
        cut.unlink()
    write_json(note, {"repo": repo, "revision": revision, "names": present, "sha256": hashes})
    return {ours: folder / theirs for ours, theirs in present.items()}


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight and configuration file, by its path in the folder."""
    hashes = {}
    for name in ("model_index.json", *PARTS):
        for path in sorted([folder / name, *(folder / name).rglob("*")]):
            if path.is_file() and path.suffix in KEPT:
                hashes[str(path.relative_to(folder))] = sha256_of(path)
    return hashes
