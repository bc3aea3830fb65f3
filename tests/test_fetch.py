"""A model becomes one complete folder, whether it is copied or downloaded; never a pickle, never a torn one."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.diffusion import model_hash, stored_tensors
from freezeasguard.models.fetch import PARTS, fetch_model
from freezeasguard.settings.params import Model

TINY = Path(__file__).parent.parent / "data/models/tiny-1.5"
COMMIT = "abc0" * 10
HUB = Model(repo="someone/sd", revision=COMMIT)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The shipped model, with what a hub repository holds besides."""
    folder = shutil.copytree(TINY, tmp_path / "source")
    for name in ("unet/diffusion_pytorch_model.bin", "vae/vae.ckpt", "README.md", "sd.safetensors", "safety/x.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("more")
    return folder


def wanted() -> set[str]:
    return {f for f in files_of(TINY) if f.startswith(tuple(f"{part}/" for part in PARTS))} | {"model_index.json"}


def test_a_local_model_is_copied_without_what_no_stage_reads(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fetch_model(Model(path=source), out)
    assert files_of(out) == wanted() | {"model.json"}
    assert model_hash(stored_tensors(out)) == model_hash(stored_tensors(TINY))
    told = json.loads((out / "model.json").read_text())["files"]
    assert told == {name: hashlib.sha256((TINY / name).read_bytes()).hexdigest() for name in wanted()}


def test_an_incomplete_model_is_refused_and_the_old_one_stays(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fetch_model(Model(path=source), out)
    before = files_of(out)
    shutil.rmtree(source / "vae")
    with pytest.raises(FreezeAsGuardError, match=f"model folder {source} lacks vae"):
        fetch_model(Model(path=source), out)
    (source / "vae").mkdir()
    shutil.copyfile(TINY / "vae/config.json", source / "vae/config.json")
    with pytest.raises(FreezeAsGuardError, match=r"lacks vae/\*\.safetensors"):
        fetch_model(Model(path=source), out)
    assert files_of(out) == before


def hub(monkeypatch: pytest.MonkeyPatch, source: Path) -> list[dict[str, Any]]:
    """A hub whose repository is `source`; it filters as the real client does."""
    asked: list[dict[str, Any]] = []

    def download(repo: str, *, revision: str, local_dir: Path, allow_patterns: Any, ignore_patterns: Any) -> str:
        asked.append({"repo": repo, "revision": revision})
        names = filter_repo_objects(
            sorted(files_of(source)), allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        for name in names:
            (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, local_dir / name)
        (local_dir / ".cache/huggingface").mkdir(parents=True)
        (local_dir / ".cache/huggingface/notes").write_text("")
        return str(local_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def test_a_hub_model_comes_at_its_revision_with_one_copy_of_its_weights(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variant in ("fp16", "non_ema"):
        (source / f"unet/diffusion_pytorch_model.{variant}.safetensors").write_text("more")
    asked = hub(monkeypatch, source)
    fetch_model(HUB, tmp_path / "out")
    assert asked == [{"repo": "someone/sd", "revision": COMMIT}]
    assert files_of(tmp_path / "out") == wanted() | {"model.json"}


def test_a_download_that_fails_says_what_from_where_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, local_dir: Path, **__: Any) -> str:
        (local_dir / "unet").mkdir(parents=True)
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(
        FreezeAsGuardError, match=f"cannot fetch someone/sd at revision {COMMIT}: no route. .*the model's path"
    ):
        fetch_model(HUB, tmp_path / "out")
    assert not (tmp_path / "out").exists() and list(tmp_path.iterdir()) == []
