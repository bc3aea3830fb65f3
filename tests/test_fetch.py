"""A model becomes one complete folder, whether it is copied or downloaded; never a pickle, never a torn one."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.diffusion import model_hash, stored_tensors
from freezeasguard.models.fetch import PARTS, fetch_model, one_variant
from freezeasguard.settings.params import Model
from freezeasguard.settings.pins import pinned

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
    fetch_model(Model(path=source), out, tmp_path / "downloads")
    assert files_of(out) == wanted() | {"model.json"}
    assert model_hash(stored_tensors(out)) == model_hash(stored_tensors(TINY))
    told = json.loads((out / "model.json").read_text())["files"]
    assert told == {name: hashlib.sha256((TINY / name).read_bytes()).hexdigest() for name in wanted()}


def test_an_incomplete_model_is_refused_and_the_old_one_stays(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fetch_model(Model(path=source), out, tmp_path / "downloads")
    before = files_of(out)
    shutil.rmtree(source / "vae")
    with pytest.raises(FreezeAsGuardError, match=f"model folder {source} lacks vae"):
        fetch_model(Model(path=source), out, tmp_path / "downloads")
    (source / "vae").mkdir()
    shutil.copyfile(TINY / "vae/config.json", source / "vae/config.json")
    with pytest.raises(FreezeAsGuardError, match=r"lacks vae/\*\.safetensors"):
        fetch_model(Model(path=source), out, tmp_path / "downloads")
    assert files_of(out) == before


def hub(monkeypatch: pytest.MonkeyPatch, source: Path, wrong: str = "") -> list[str]:
    """A hub whose repository is `source`; it filters as the real client does, and tells another hash of `wrong`."""
    asked: list[str] = []

    def told(_: Any, repo: str, *, revision: str, files_metadata: bool) -> Any:
        def lfs(name: str) -> Any:
            right = hashlib.sha256((source / name).read_bytes()).hexdigest()
            return SimpleNamespace(sha256="0" * 64 if name == wrong else right)

        large = {name: lfs(name) if name.endswith(".safetensors") else None for name in files_of(source)}
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, lfs=lfs) for name, lfs in large.items()])

    def download(repo: str, *, revision: str, local_dir: Path, allow_patterns: Any) -> str:
        asked.append(f"{repo}@{revision}")
        for name in filter_repo_objects(sorted(files_of(source)), allow_patterns=allow_patterns):
            (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, local_dir / name)
        (local_dir / ".cache/huggingface").mkdir(parents=True, exist_ok=True)
        (local_dir / ".cache/huggingface/notes").write_text("")
        return str(local_dir)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", told)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def test_a_hub_model_comes_at_its_revision_with_one_copy_of_its_weights(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variant in ("fp16", "non_ema"):
        (source / f"unet/diffusion_pytorch_model.{variant}.safetensors").write_text("more")
    asked = hub(monkeypatch, source)
    for _ in range(2):
        fetch_model(HUB, tmp_path / "out", tmp_path / "downloads")
        assert asked == [f"someone/sd@{COMMIT}"], "what is there with the right hash is not fetched again"
        assert files_of(tmp_path / "out") == wanted() | {"model.json"}
    (tmp_path / "downloads/unet/config.json").write_text("{}")
    fetch_model(HUB, tmp_path / "out", tmp_path / "downloads")
    assert len(asked) == 2


def test_a_model_that_has_one_variant_alone_loads_under_the_plain_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = source / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    hub(monkeypatch, source)
    fetch_model(HUB, tmp_path / "out", tmp_path / "downloads")
    assert files_of(tmp_path / "out") == wanted() | {"model.json"}
    assert model_hash(stored_tensors(tmp_path / "out")) == model_hash(stored_tensors(TINY))


def test_one_variant_of_what_a_release_holds() -> None:
    """Names as stable-diffusion-v1-5 and sharded repositories have them."""
    plain = ["model_index.json", "unet/config.json", "tokenizer/merges.txt", "tokenizer/vocab.json"]
    plain += ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
    others = ["unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "v1-5-pruned.ckpt"]
    others += ["unet/diffusion_pytorch_model.non_ema.safetensors", "safety_checker/model.safetensors", "unet/a/b.json"]
    assert one_variant(plain + others) == {name: name for name in plain}
    sharded = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    sharded.append("unet/diffusion_pytorch_model.safetensors.index.json")
    half = ["unet/diffusion_pytorch_model.safetensors.index.fp16.json"]
    half += [f"unet/diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert set(one_variant(sharded + half)) == {*sharded, "model_index.json"}


def test_a_file_with_another_hash_than_the_hubs_is_removed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "vae/diffusion_pytorch_model.safetensors"
    hub(monkeypatch, source, wrong=name)
    with pytest.raises(FreezeAsGuardError, match=f"{name} has sha256 .*, the hub says 0000.*run this again"):
        fetch_model(HUB, tmp_path / "out", tmp_path / "downloads")
    assert not (tmp_path / "out").exists() and not (tmp_path / "downloads" / name).exists()


def test_a_revision_that_no_first_fetch_has_pinned_is_told(tmp_path: Path) -> None:
    spec = Model(repo="someone/sd", revision="pinned")
    with pytest.raises(FreezeAsGuardError, match="revision of someone/sd is not pinned yet; run `freezeasguard fetch`"):
        fetch_model(spec, tmp_path / "out", tmp_path / "downloads")
    assert pinned(spec, {"someone/sd": COMMIT}) == HUB and pinned(spec, {}) == spec


def test_a_download_that_fails_says_what_from_where_and_keeps_what_has_come(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(monkeypatch, source)

    def fail(*_: Any, local_dir: Path, **__: Any) -> str:
        (local_dir / "unet").mkdir(parents=True)
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(
        FreezeAsGuardError, match=f"cannot fetch someone/sd at revision {COMMIT}: no route. .*the model's path"
    ):
        fetch_model(HUB, tmp_path / "out", tmp_path / "downloads")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "downloads"}, "no part of a model, under no name"
