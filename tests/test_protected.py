from __future__ import annotations

import errno
import hashlib
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import ToyDenoiser
from freezeasguard import files
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models import protected
from freezeasguard.models.diffusion import model_hash, named_tensors
from freezeasguard.models.granularity import mask_digest
from freezeasguard.models.protected import (
    Protected,
    load_adapted,
    load_tensors,
    mask_sizes,
    read_protected,
    write_protected,
)
from freezeasguard.models.protected_file import read_protected_file, sealed

MASK = Protected("freezeasguard", frozenset({"weight", "gain"}), {}, {"rho": 0.3, "seed": 1}, {"overlap": 0.31})


@pytest.fixture
def edit(toy: ToyDenoiser) -> Protected:
    return Protected("uce", frozenset(), {"text": toy.text.detach() + 1, "gain": torch.tensor(2.5)})


def write(folder: Path, content: Protected, toy: torch.nn.Module) -> None:
    tensors = named_tensors(toy)
    write_protected(folder, content, {n: list(t.shape) for n, t in tensors.items()}, model_hash(tensors))


def rewrite(folder: Path, **changes: Any) -> None:
    """As another writer of this format would: with a digest that fits what the file says."""
    path = folder / "protected.json"
    path.write_text(json.dumps(sealed({**json.loads(path.read_text()), **changes})))


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
    with pytest.raises(FreezeAsGuardError, match=r"p/protected.json is missing; .*`dvc repro -f protect@.*-p`"):
        read_protected(tmp_path / "p", toy)


def test_another_format_and_torn_json_are_refused(tmp_path: Path, toy: ToyDenoiser) -> None:
    folder = tmp_path / "p"
    write(folder, MASK, toy)
    rewrite(folder, format=99)
    with pytest.raises(
        FreezeAsGuardError, match=r"p/protected.json has format 99; this version reads 3.*dvc repro -f protect@"
    ):
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


# --- rows and weights -----------------------------------------------------------------------------

ROWS = {"text": torch.arange(8) % 3 == 0, "bias": torch.tensor([True, False, False, True])}
PARTS = {
    "row": Protected("x", frozenset({"weight"}), granularity="row", frozen_units=ROWS),
    "element": Protected(
        "x",
        granularity="element",
        frozen_units={"weight": torch.arange(16) % 5 == 0, "bias": torch.ones(4).bool(), "time": torch.arange(4) > 0},
    ),
}


@pytest.mark.parametrize("granularity", PARTS)
def test_rows_and_weights_come_back_from_disk(granularity: str, tmp_path: Path, toy: ToyDenoiser) -> None:
    mask = PARTS[granularity]
    write(tmp_path / "p", mask, toy)
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["mask.safetensors", "protected.json"]
    read = read_protected(tmp_path / "p", ToyDenoiser())
    assert (read.granularity, read.frozen) == (granularity, mask.frozen)
    assert list(read.frozen_units) == list(mask.frozen_units)
    assert all(torch.equal(read.frozen_units[name], units) for name, units in mask.frozen_units.items())


def test_what_the_file_says_of_rows(tmp_path: Path, toy: ToyDenoiser) -> None:
    write(tmp_path / "p", PARTS["row"], toy)
    content = read_protected_file(tmp_path / "p")
    assert (content["format"], content["granularity"], content["frozen"]) == (3, "row", {"weight": [4, 4]})
    assert content["frozen_units"] == {
        "bias": {"shape": [4], "n_units": 4, "n_frozen": 2},
        "text": {"shape": [8, 4], "n_units": 8, "n_frozen": 3},
    }
    assert {n: t.tolist() for n, t in load_file(tmp_path / "p" / "mask.safetensors").items()} == {
        "bias": [0b1001],
        "text": [0b1001001],
    }


def test_units_frozen_whole_become_names() -> None:
    assert PARTS["element"].frozen == {"bias"} and list(PARTS["element"].frozen_units) == ["time", "weight"]
    by_tensor = Protected("x", frozen_units={"weight": torch.ones(1).bool(), "bias": torch.zeros(1).bool()})
    assert by_tensor == Protected("x", frozenset({"weight"}))
    with pytest.raises(FreezeAsGuardError, match="granularity is 'column'; use tensor, row, element"):
        Protected("x", granularity="column")


def test_a_row_mask_may_freeze_no_tensor_in_part(tmp_path: Path, toy: ToyDenoiser) -> None:
    whole = Protected(
        "x", frozen_units={"bias": torch.ones(4).bool(), "time": torch.zeros(4).bool()}, granularity="row"
    )
    write(tmp_path / "p", whole, toy)
    assert [p.name for p in (tmp_path / "p").iterdir()] == ["protected.json"]
    assert read_protected(tmp_path / "p", toy) == whole == Protected("x", frozenset({"bias"}), granularity="row")


def test_a_tensor_mask_is_written_as_it_always_was(tmp_path: Path, toy: ToyDenoiser) -> None:
    write(tmp_path / "p", MASK, toy)
    expected = {
        "format": 3,
        "method": "freezeasguard",
        "model_sha256": model_hash(named_tensors(toy)),
        "n_tensors": 7,
        "granularity": "tensor",
        "frozen": {"gain": [], "weight": [4, 4]},
        "frozen_units": {},
        "mask_sha256": mask_digest(MASK.frozen, {}, "tensor"),
        "edited": {},
        "edited_sha256": model_hash({}),
        "settings": {"rho": 0.3, "seed": 1},
        "diagnostics": {"overlap": 0.31},
    }
    digest = hashlib.sha256(json.dumps(expected, sort_keys=True).encode()).hexdigest()
    text = json.dumps({**expected, "content_sha256": digest}, indent=1, sort_keys=True) + "\n"
    assert (tmp_path / "p" / "protected.json").read_text() == text


def test_the_bytes_of_a_mask_are_its_lines_and_its_file(tmp_path: Path, toy: ToyDenoiser) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in named_tensors(toy).items()}
    write(tmp_path / "p", PARTS["row"], toy)
    size = (tmp_path / "p" / "mask.safetensors").stat().st_size
    content = read_protected_file(tmp_path / "p")
    lines = {key: content[key] for key in ("frozen", "frozen_units", "granularity")}
    sizes = mask_sizes(PARTS["row"], shapes)
    assert sizes["mask_bytes"] == size + len(json.dumps(lines, indent=1, sort_keys=True))
    assert (sizes["n_units"], sizes["n_frozen"]) == (23, 3 + 2 + 4)
    assert mask_sizes(MASK, shapes)["mask_bytes"] == len(
        json.dumps({"frozen": {"gain": [], "weight": [4, 4]}}, indent=1, sort_keys=True)
    )


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"bias": [0b1001]}, r"p/mask.safetensors and protected.json name different tensors, e.g. text"),
        ({"bias": [9], "text": [73], "time": [1]}, r"p/mask.safetensors and .* different tensors, e.g. time"),
        ({"bias": [9], "text": [73, 0]}, r"p/mask.safetensors: text has 2 bytes of mask .* for 8 units, which need 1"),
        ({"bias": [9], "text": []}, r"p/mask.safetensors: text has 0 bytes of mask"),
        ({"bias": [9], "text": [[73]]}, r"p/mask.safetensors: text has 1 bytes of mask"),
        ({"bias": [9], "text": [72]}, r"p/mask.safetensors: text has 2 frozen units, protected.json says 3"),
    ],
)
def test_a_mask_file_of_other_content_is_refused(
    tensors: dict[str, Any], said: str, tmp_path: Path, toy: ToyDenoiser
) -> None:
    write(tmp_path / "p", PARTS["row"], toy)
    content = {name: torch.tensor(values, dtype=torch.uint8) for name, values in tensors.items()}
    save_file(content, tmp_path / "p" / "mask.safetensors")
    with pytest.raises(FreezeAsGuardError, match=said + ".*run the protection stage again"):
        read_protected(tmp_path / "p", toy)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_torn_or_missing_mask_file_is_refused(share: float, tmp_path: Path, toy: ToyDenoiser) -> None:
    write(tmp_path / "p", PARTS["row"], toy)
    path = tmp_path / "p" / "mask.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FreezeAsGuardError, match=r"p/mask.safetensors is torn .*run the protection stage again"):
        read_protected(tmp_path / "p", toy)
    path.unlink()
    with pytest.raises(FreezeAsGuardError, match=r"p/mask.safetensors is missing; run the protection stage"):
        read_protected(tmp_path / "p", toy)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frozen_units": {"nope": {"shape": [8], "n_units": 8, "n_frozen": 1}}}, "lacks, e.g. nope"),
        (
            {"frozen_units": {"text": {"shape": [9, 4], "n_units": 9, "n_frozen": 3}}},
            r"p/protected.json: text is \[9, 4\] in the mask and \[8, 4\] in the model",
        ),
        (
            {"frozen_units": {"text": {"shape": [8, 4], "n_units": 7, "n_frozen": 3}}},
            r"p/protected.json: text has 7 units, a tensor of shape \[8, 4\] has 8 at granularity 'row'",
        ),
        ({"granularity": "element"}, r"text has 8 units, .* has 32 at granularity 'element'"),
        ({"granularity": "tensor"}, r"p/protected.json: bias has 4 units, .* has 1 at granularity 'tensor'"),
        ({"granularity": "column"}, r"p/protected.json: granularity is 'column'"),
        ({"format": 1}, r"p/protected.json has format 1; this version reads 3.*dvc repro -f protect@"),
        ({"model_sha256": "0" * 64}, "same shapes, other weights"),
    ],
)
def test_rows_of_another_model_are_refused(
    changes: dict[str, Any], said: str, tmp_path: Path, toy: ToyDenoiser
) -> None:
    write(tmp_path / "p", PARTS["row"], toy)
    rewrite(tmp_path / "p", **changes)
    with pytest.raises(FreezeAsGuardError, match=said):
        read_protected(tmp_path / "p", toy)


@pytest.mark.parametrize(
    ("units", "said"),
    [({"nope": torch.arange(4) < 2}, "lacks, e.g. nope"), ({"text": torch.arange(9) < 2}, r"asks for bool \[8\]")],
)
def test_units_of_another_model_are_not_even_written(
    units: dict[str, Tensor], said: str, tmp_path: Path, toy: ToyDenoiser
) -> None:
    with pytest.raises(FreezeAsGuardError, match=said):
        write(tmp_path / "p", Protected("x", granularity="row", frozen_units=units), toy)
    assert not list(tmp_path.iterdir())


# --- nothing but what was written is read -----------------------------------------------------------

BOTH = Protected("x", frozenset({"weight"}), {"time": torch.arange(4.0)}, {"rho": 0.3}, {}, "row", ROWS)


def read_back(folder: Path, toy: ToyDenoiser) -> tuple[Any, ...]:
    """What a user gets: all that must be as it was written."""
    read = read_protected(folder, toy)
    units = {name: tuple(part.tolist()) for name, part in read.frozen_units.items()}
    return read.granularity, read.frozen, units, {name: tuple(t.tolist()) for name, t in read.edited.items()}


@pytest.mark.parametrize("file", ["protected.json", "mask.safetensors", "edited.safetensors"])
def test_a_changed_byte_is_refused_or_changes_nothing(file: str, tmp_path: Path, toy: ToyDenoiser) -> None:
    write(tmp_path / "p", BOTH, toy)
    written, path, rng = read_back(tmp_path / "p", toy), tmp_path / "p" / file, random.Random(file)
    content, refused = path.read_bytes(), 0
    for _ in range(200):
        place, kind = rng.randrange(len(content)), rng.choice(["flip", "set", "cut", "drop", "add"])
        torn = {
            "flip": content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :],
            "set": content[:place] + rng.randbytes(1) + content[place + 1 :],
            "cut": content[:place],
            "drop": content[:place] + content[place + 1 :],
            "add": content[:place] + rng.choice([b" ", b"\n", rng.randbytes(1)]) + content[place:],
        }[kind]
        path.write_bytes(torn)
        try:
            read = read_back(tmp_path / "p", toy)
        except FreezeAsGuardError as error:
            refused += 1
            assert str(error).count("\n") == 0 and "p/" in str(error) and "dvc repro -f protect@" in str(error), torn
        else:
            assert read == written, torn
    assert refused > 120
    path.write_bytes(content)
    assert read_back(tmp_path / "p", toy) == written


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frozen_units": None}, "frozen_units is 'None'"),
        ({"frozen_units": ...}, "frozen_units is missing"),
        ({"mask_sha256": ...}, "mask_sha256 is missing"),
        ({"edited_sha256": ...}, "edited_sha256 is missing"),
        ({"frozen": ["weight"]}, r"frozen is \"\['weight'\]\""),
        ({"frozen": {"weight": "4,4"}}, "frozen.weight is '4,4'"),
        ({"unfrozen": []}, "unfrozen is no key of this format"),
        ({"frozen_units": {}}, "mask.safetensors and protected.json name different tensors"),
        ({"edited": {}}, "edited.safetensors and protected.json name different tensors"),
        ({"frozen": {}}, "mask.safetensors: the mask has the SHA-256"),
        ({"frozen": {"weight": [4, 4], "gain": []}}, "mask.safetensors: the mask has the SHA-256"),
        ({"format": 2}, "has format 2; this version reads 3"),
    ],
)
def test_a_mask_that_says_less_or_more_than_was_written_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path, toy: ToyDenoiser
) -> None:
    """By both readers, where the file alone tells it; with a digest that fits, as a forger would give it."""
    write(tmp_path / "p", BOTH, toy)
    path = tmp_path / "p" / "protected.json"
    content = {key: value for key, value in {**json.loads(path.read_text()), **changes}.items() if value is not ...}
    path.write_text(json.dumps(sealed(content)))
    with pytest.raises(FreezeAsGuardError, match=said + ".*dvc repro -f protect@"):
        read_protected(tmp_path / "p", toy)
    if "safetensors" not in said:
        with pytest.raises(FreezeAsGuardError, match=said):
            read_protected_file(tmp_path / "p")


def test_a_number_changed_by_hand_is_noticed_without_the_weights(tmp_path: Path, toy: ToyDenoiser) -> None:
    write(tmp_path / "p", BOTH, toy)
    path = tmp_path / "p" / "protected.json"
    path.write_text(path.read_text().replace("0.3", "0.4"))
    with pytest.raises(FreezeAsGuardError, match="p/protected.json is not as it was written.*dvc repro -f protect@"):
        read_protected_file(tmp_path / "p")


@pytest.mark.parametrize("content", ["[]", "3", "null", "[" * 10**5, '"\\ud800"', "\xff", "1" * 5000])
def test_json_of_another_shape_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "protected.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(FreezeAsGuardError, match=r"protected.json (is not JSON|holds a .*, not a dict)"):
        read_protected_file(tmp_path)


def test_other_units_of_the_same_number_are_refused(tmp_path: Path, toy: ToyDenoiser) -> None:
    write(tmp_path / "p", BOTH, toy)
    units = {"bias": torch.tensor([0b0110], dtype=torch.uint8), "text": torch.tensor([73], dtype=torch.uint8)}
    save_file(units, tmp_path / "p" / "mask.safetensors")
    with pytest.raises(FreezeAsGuardError, match="p/mask.safetensors: the mask has the SHA-256 .*dvc repro -f protect"):
        read_protected(tmp_path / "p", toy)


EDITS = {
    "has values that are not finite": torch.tensor([0, 1, torch.nan, 3]),
    "is torch.int64; weights are": torch.arange(4),
    "is torch.float64; weights are": torch.arange(4.0).double(),
    r"is \[1\], the model's \[4\]": torch.zeros(1),
}


@pytest.mark.parametrize("said", EDITS)
def test_edits_that_are_no_weights_are_neither_read_nor_written(said: str, tmp_path: Path, toy: ToyDenoiser) -> None:
    with pytest.raises(FreezeAsGuardError, match=f"the edits of x: time {said}.*params.yaml"):
        write(tmp_path / "p", replace(BOTH, edited={"time": EDITS[said]}), toy)
    assert not list(tmp_path.iterdir())
    write(tmp_path / "p", BOTH, toy)
    save_file({"time": EDITS[said]}, tmp_path / "p" / "edited.safetensors")
    with pytest.raises(FreezeAsGuardError, match=f"p/edited.safetensors: time {said}.*dvc repro -f protect@"):
        read_protected(tmp_path / "p", toy)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (None, r"legal.safetensors is missing"),
        (b"\x10", r"legal.safetensors is torn \("),
        ({"nope": torch.ones(4)}, "nope is no tensor of this model"),
        ({"bias": torch.ones(3)}, r"bias is \[3\], the model's \[4\]"),
        ({"bias": torch.full((4,), torch.inf)}, "bias has values that are not finite"),
    ],
)
def test_an_adapted_model_that_is_torn_or_foreign_is_one_line(
    tensors: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protected, "load_unet", lambda _: ToyDenoiser())
    path = tmp_path / "faces/full/legal.safetensors"
    path.parent.mkdir(parents=True)
    if isinstance(tensors, bytes):
        path.write_bytes(tensors)
    elif tensors:
        save_file(tensors, path)
    with pytest.raises(FreezeAsGuardError, match=said + ".*run `dvc repro -f adapt@faces-full`"):
        load_adapted(tmp_path, path.parent, "legal")


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
