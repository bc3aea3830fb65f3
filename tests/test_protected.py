from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from conftest import ToyDenoiser
from freezeasguard import files, protected
from freezeasguard.diffusion import model_hash, named_tensors
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.protected import Protected, load_tensors, read_protected, read_protected_file, write_protected

MASK = Protected("freezeasguard", frozenset({"weight", "gain"}), {}, {"rho": 0.3, "seed": 1}, {"overlap": 0.31})


@pytest.fixture
def edit(toy: ToyDenoiser) -> Protected:
    return Protected("uce", frozenset(), {"text": toy.text.detach() + 1, "gain": torch.tensor(2.5)})


def write(folder: Path, content: Protected, toy: torch.nn.Module) -> None:
    tensors = named_tensors(toy)
    write_protected(folder, content, {n: list(t.shape) for n, t in tensors.items()}, model_hash(tensors))


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "protected.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- round trip -----------------------------------------------------------------------------------


def test_a_mask_comes_back_from_disk(tmp_path: Path, toy: ToyDenoiser) -> None:
    write(tmp_path / "a" / "b", MASK, toy)
    assert read_protected(tmp_path / "a" / "b", ToyDenoiser()) == MASK
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["protected.json"]
    content = read_protected_file(tmp_path / "a" / "b")
    assert content["frozen"] == {"gain": [], "weight": [4, 4]} and content["n_tensors"] == 7


def test_edited_weights_come_back_from_disk(tmp_path: Path, toy: ToyDenoiser, edit: Protected) -> None:
    write(tmp_path / "p", edit, toy)
    read = read_protected(tmp_path / "p", toy)
    assert read.method == "uce" and read.frozen == frozenset()
    assert read.edited.keys() == edit.edited.keys()
    assert all(torch.equal(read.edited[name], tensor) for name, tensor in edit.edited.items())
    before = toy.weight.detach().clone()
    load_tensors(toy, read.edited)
    assert toy.gain.item() == 2.5 and torch.equal(toy.text, edit.edited["text"]) and torch.equal(toy.weight, before)


def test_the_full_arm_protects_nothing(tmp_path: Path, toy: ToyDenoiser) -> None:
    write(tmp_path / "p", Protected("full"), toy)
    assert read_protected(tmp_path / "p", toy) == Protected("full")


def test_a_second_write_replaces_the_first(tmp_path: Path, toy: ToyDenoiser, edit: Protected) -> None:
    write(tmp_path / "p", edit, toy)
    write(tmp_path / "p", MASK, toy)
    assert read_protected(tmp_path / "p", toy) == MASK
    assert [p.name for p in tmp_path.rglob("*")] == ["p", "protected.json"]


# --- refusals -------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_names_its_file_and_remedy(tmp_path: Path, toy: ToyDenoiser) -> None:
    with pytest.raises(FreezeAsGuardError, match=r"p/protected.json is missing; .*dvc repro learn_mask"):
        read_protected(tmp_path / "p", toy)


def test_another_format_and_torn_json_are_refused(tmp_path: Path, toy: ToyDenoiser) -> None:
    folder = tmp_path / "p"
    write(folder, MASK, toy)
    rewrite(folder, format=99)
    with pytest.raises(FreezeAsGuardError, match=r"p/protected.json has format 99; this version reads 1"):
        read_protected(folder, toy)
    (folder / "protected.json").write_text('{"format": 1, "fro')
    with pytest.raises(FreezeAsGuardError, match=r"p/protected.json is not JSON"):
        read_protected(folder, toy)


@pytest.mark.parametrize("kind", ["frozen", "edited"])
def test_an_unknown_tensor_is_refused(kind: str, tmp_path: Path, toy: ToyDenoiser) -> None:
    write(tmp_path / "p", MASK, toy)
    rewrite(tmp_path / "p", **{kind: {"down_blocks.0": [3]}})
    with pytest.raises(FreezeAsGuardError, match="lacks, e.g. down_blocks.0; it was made for another model"):
        read_protected(tmp_path / "p", toy)


@pytest.mark.parametrize(
    "content", [Protected("x", frozenset({"nope"})), Protected("x", edited={"nope": torch.ones(1)})]
)
def test_an_unknown_tensor_is_not_even_written(content: Protected, tmp_path: Path, toy: ToyDenoiser) -> None:
    with pytest.raises(FreezeAsGuardError, match="lacks, e.g. nope"):
        write(tmp_path / "p", content, toy)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["frozen", "edited"])
def test_another_shape_is_refused(kind: str, tmp_path: Path, toy: ToyDenoiser) -> None:
    write(tmp_path / "p", MASK, toy)
    rewrite(tmp_path / "p", **{kind: {"weight": [8, 4]}})
    with pytest.raises(FreezeAsGuardError, match=r"p/protected.json: weight is \[8, 4\] .*\[4, 4\] in the model"):
        read_protected(tmp_path / "p", toy)


def test_other_weights_of_the_same_shapes_are_refused(tmp_path: Path, toy: ToyDenoiser) -> None:
    write(tmp_path / "p", MASK, toy)
    with pytest.raises(FreezeAsGuardError, match=r"p/protected.json belongs to .*same shapes, other weights"):
        read_protected(tmp_path / "p", ToyDenoiser(seed=1))
    with torch.no_grad():
        toy.speed += 1e-3  # one number of a tensor that the mask does not even freeze
    with pytest.raises(FreezeAsGuardError, match="same shapes, other weights"):
        read_protected(tmp_path / "p", toy)


def test_missing_and_foreign_edited_weights_are_refused(tmp_path: Path, toy: ToyDenoiser, edit: Protected) -> None:
    write(tmp_path / "p", edit, toy)
    weights = tmp_path / "p" / "edited.safetensors"
    save_file({"gain": torch.tensor(1.0)}, weights)
    with pytest.raises(FreezeAsGuardError, match=r"p/edited.safetensors and protected.json name different tensors"):
        read_protected(tmp_path / "p", toy)
    weights.unlink()
    with pytest.raises(FreezeAsGuardError, match=r"p/edited.safetensors is missing; run the protection stage"):
        read_protected(tmp_path / "p", toy)


def test_loading_refuses_unknown_names_and_other_shapes_before_it_copies(toy: ToyDenoiser) -> None:
    with pytest.raises(FreezeAsGuardError, match="lacks, e.g. nope"):
        load_tensors(toy, {"gain": torch.tensor(9.0), "nope": torch.ones(1)})
    assert toy.gain.item() != 9
    with pytest.raises(FreezeAsGuardError, match=r"bias is \(1,\), the model's \(4,\)"):
        load_tensors(toy, {"bias": torch.ones(1)})  # copy_ alone would broadcast it


# --- the hash -------------------------------------------------------------------------------------


def test_the_hash_ignores_order_storage_and_layout() -> None:
    generator = torch.Generator().manual_seed(0)
    half = {name: torch.randn(3, 4, generator=generator).half() for name in "abc"}
    digest = model_hash(half)
    assert model_hash({name: half[name].float() for name in "cab"}) == digest
    assert model_hash({name: half[name].T.contiguous().T for name in "abc"}) == digest
    assert model_hash({name: torch.nn.Parameter(half[name]) for name in "abc"}) == digest


def test_the_hash_sees_values_names_and_shapes() -> None:
    value = torch.arange(6.0)
    digests = [
        model_hash({"a": value}),
        model_hash({"b": value}),
        model_hash({"a": value.view(2, 3)}),
        model_hash({"a": value.view(3, 2)}),
        model_hash({"a": value.nextafter(torch.tensor(9.0))}),
        model_hash({"a": value, "b": value}),
        model_hash({"a": value.flip(0)}),
    ]
    assert len(set(digests)) == len(digests)


# --- a full disk ----------------------------------------------------------------------------------


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["save_file", "replace", "write_text"])
def test_a_full_disk_leaves_no_folder(
    where: str, tmp_path: Path, toy: ToyDenoiser, edit: Protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "save_file":
        monkeypatch.setattr(protected, "save_file", full)
    elif where == "replace":
        monkeypatch.setattr(os, "replace", full)
    else:
        monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(FreezeAsGuardError) as error:
        write(tmp_path / "p", edit, toy)
    assert "the disk is full (" in str(error.value) and str(tmp_path) in str(error.value)
    assert "dvc gc -w" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_as_safetensors_reports_it(
    tmp_path: Path, toy: ToyDenoiser, edit: Protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: Any) -> None:  # measured on a full tmpfs
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(protected, "save_file", save)
    with pytest.raises(FreezeAsGuardError, match="the disk is full"):
        write(tmp_path / "p", edit, toy)


def test_a_full_disk_keeps_what_was_written_before(
    tmp_path: Path, toy: ToyDenoiser, edit: Protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "p", MASK, toy)
    monkeypatch.setattr(protected, "save_file", full)
    with pytest.raises(FreezeAsGuardError, match="the disk is full"):
        write(tmp_path / "p", edit, toy)
    assert read_protected(tmp_path / "p", toy) == MASK
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_a_failed_rename_keeps_what_was_written_before(
    tmp_path: Path, toy: ToyDenoiser, edit: Protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "p", MASK, toy)
    replace = os.replace

    def fail(source: Any, target: Any) -> None:
        if Path(target) == tmp_path / "p" and Path(source).name.endswith(".tmp"):
            full()
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(FreezeAsGuardError, match="the disk is full"):
            write(tmp_path / "p", edit, toy)
    assert read_protected(tmp_path / "p", toy) == MASK


def test_other_errors_pass_through_and_leave_nothing_either(tmp_path: Path) -> None:
    for error in (PermissionError(errno.EACCES, "no"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            with files.write_atomically(tmp_path / "file") as temporary:
                temporary.write_text("half")
                raise error
        with pytest.raises(type(error)):
            with files.folder_atomically(tmp_path / "folder") as temporary:
                (temporary / "half").touch()
                raise error
    assert not list(tmp_path.iterdir())
