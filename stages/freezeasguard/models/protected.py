"""A protected model: the one interface between the methods and everything after them.

A folder with `protected.json` (method, frozen tensors by name with their shapes, hash of the model they
belong to, diagnostics); where the method edits weights, `edited.safetensors` by name; and where it freezes
parts of tensors, `mask.safetensors`: one bit a unit, by name. The full arm fills it with nothing; users,
generators and scores are blind to the method. `protected.json` holds digests of the mask, of the edits and of
itself: what is read back is what was written, or refused.

A user's own trainer takes it in three lines, and `Frozen` says how its loop goes on:

    protected = read_protected(folder, unet)
    load_tensors(unet, protected.edited)
    frozen = freeze_for_training(unet, protected)
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import folder_atomically, write_json
from freezeasguard.models.diffusion import load_unet, model_hash, named_tensors
from freezeasguard.models.freezing import Frozen
from freezeasguard.models.granularity import (
    check_granularity,
    check_names,
    check_units,
    check_values,
    mask_counts,
    mask_digest,
    n_units,
    normal_form,
    pack_bits,
    unpack_bits,
)
from freezeasguard.models.protected_file import FORMAT, again, read_protected_file, sealed
from freezeasguard.reading import read_tensors


@dataclass(frozen=True)
class Protected:
    method: str
    frozen: frozenset[str] = frozenset()
    edited: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """rho, preset, seed and whatever else made it."""
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    granularity: str = "tensor"
    frozen_units: Mapping[str, Tensor] = field(default_factory=dict)
    """bool [n_units] by name. Kept in normal form: `frozen` names the tensors frozen whole, this holds those frozen
    in part. Give all the units of a mask here, and the constructor sorts them."""

    def __post_init__(self) -> None:
        check_granularity(self.granularity)
        frozen, frozen_units = normal_form(self.frozen, self.frozen_units)
        object.__setattr__(self, "frozen", frozen)
        object.__setattr__(self, "frozen_units", frozen_units)


def mask_entries(protected: Protected, shapes: Mapping[str, Collection[int]]) -> dict[str, Any]:
    """What `protected.json` says of the mask."""
    entries: dict[str, Any] = {"frozen": {name: list(shapes[name]) for name in sorted(protected.frozen)}}
    if protected.granularity != "tensor":
        entries["granularity"] = protected.granularity
        entries["frozen_units"] = {
            name: {"shape": list(shapes[name]), "n_units": len(units), "n_frozen": int(units.sum())}
            for name, units in protected.frozen_units.items()
        }
    return entries


def packed_units(protected: Protected) -> dict[str, Tensor]:
    """What `mask.safetensors` holds: uint8 [ceil(n_units / 8)] by name."""
    return {name: pack_bits(units) for name, units in protected.frozen_units.items()}


def mask_sizes(protected: Protected, shapes: Mapping[str, list[int]]) -> dict[str, int | float]:
    """How much a mask freezes (see `mask_counts`), and `mask_bytes`: what it takes on disk.

    That is its part of `protected.json`, names and shapes, and `mask.safetensors` where there is one.
    """
    counts = mask_counts(protected.frozen, protected.frozen_units, shapes, protected.granularity)
    packed = packed_units(protected)
    text = json.dumps(mask_entries(protected, shapes), indent=1, sort_keys=True)
    return {**counts, "mask_bytes": len(text) + (len(save(packed)) if packed else 0)}


def write_protected(folder: Path, protected: Protected, shapes: Mapping[str, list[int]], model: str) -> None:
    """Write the folder whole or not at all.

    Args:
        shapes: of every tensor of the model, by name; model: its hash (see `model_hash`).
    """
    check_names(protected.frozen, shapes)
    check_names(protected.edited, shapes)
    check_units(protected.frozen_units, shapes, protected.granularity)
    check_values(f"the edits of {protected.method}", protected.edited, shapes, "lower its rates in params.yaml")
    content = {
        "format": FORMAT,
        "method": protected.method,
        "model_sha256": model,
        "n_tensors": len(shapes),
        "granularity": protected.granularity,
        "frozen_units": {},
        **mask_entries(protected, shapes),
        "mask_sha256": mask_digest(protected.frozen, protected.frozen_units, protected.granularity),
        "edited_sha256": model_hash(protected.edited),
        "edited": {name: list(shapes[name]) for name in sorted(protected.edited)},
        "settings": dict(protected.settings),
        "diagnostics": dict(protected.diagnostics),
    }
    with folder_atomically(folder) as temporary:
        if protected.edited:
            tensors = {n: t.detach().contiguous() for n, t in sorted(protected.edited.items())}
            save_file(tensors, temporary / "edited.safetensors")
        if protected.frozen_units:
            save_file(packed_units(protected), temporary / "mask.safetensors")
        write_json(temporary / "protected.json", sealed(content))


def tensor_shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def write_for(tensors: Mapping[str, Tensor], folder: Path, protected: Protected) -> None:
    """Write the folder for the model of these tensors: their shapes, its hash."""
    write_protected(folder, protected, tensor_shapes(tensors), model_hash(tensors))


def read_protected(folder: Path, unet: torch.nn.Module) -> Protected:
    """Read the folder and check that it is whole, and belongs to `unet`: names, shapes and hash of its weights."""
    path = folder / "protected.json"
    content = read_protected_file(folder)
    tensors = named_tensors(unet)
    in_part = content["frozen_units"]
    for shapes in (content["frozen"], content["edited"], {name: entry["shape"] for name, entry in in_part.items()}):
        check_names(shapes, tensors)
        for name, shape in shapes.items():
            if list(tensors[name].shape) != shape:
                raise FreezeAsGuardError(
                    f"{path}: {name} is {shape} in the mask and "
                    f"{list(tensors[name].shape)} in the model; it was made for another model"
                )
    if (found := model_hash(tensors)) != content["model_sha256"]:
        raise FreezeAsGuardError(
            f"{path} belongs to the model {content['model_sha256'][:12]}, this one is "
            f"{found[:12]}: same shapes, other weights. Learn a mask for this model"
        )
    granularity = content["granularity"]
    for name, entry in in_part.items():
        if entry["n_units"] != (expected := n_units(entry["shape"], granularity)):
            raise FreezeAsGuardError(
                f"{path}: {name} has {entry['n_units']} units, a tensor of shape {entry['shape']} has {expected} "
                f"at granularity {granularity!r}; {again(folder)}"
            )
    edited = _read_named(folder / "edited.safetensors", content["edited"])
    check_values(folder / "edited.safetensors", edited, content["edited"], again(folder))
    frozen_units = _read_units(folder / "mask.safetensors", in_part)
    found = {"edited": model_hash(edited), "mask": mask_digest(content["frozen"], frozen_units, granularity)}
    for kind, digest in found.items():
        if digest != content[f"{kind}_sha256"]:
            raise FreezeAsGuardError(
                f"{folder / kind}.safetensors: the {kind} has the SHA-256 {digest[:12]}, protected.json says "
                f"{content[f'{kind}_sha256'][:12]}; {again(folder)}"
            )
    return Protected(
        content["method"],
        frozenset(content["frozen"]),
        edited,
        content["settings"],
        content["diagnostics"],
        granularity,
        frozen_units,
    )


def _read_named(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a file beside `protected.json`, which must be exactly those that it names."""
    if not names and not path.exists():
        return {}
    tensors = read_tensors(path, again(path.parent))
    if tensors.keys() != set(names):
        other = sorted(tensors.keys() ^ set(names))[0]
        raise FreezeAsGuardError(
            f"{path} and protected.json name different tensors, e.g. {other}; {again(path.parent)}"
        )
    return tensors


def _read_units(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """bool [n_units] by name from the packed mask, as many of them frozen as `protected.json` says."""
    units: dict[str, Tensor] = {}
    for name, packed in _read_named(path, entries).items():
        try:
            units[name] = unpack_bits(packed, entries[name]["n_units"])
        except FreezeAsGuardError as error:
            raise FreezeAsGuardError(f"{path}: {name} has {error}; {again(path.parent)}") from error
        if (found := int(units[name].sum())) != entries[name]["n_frozen"]:
            raise FreezeAsGuardError(
                f"{path}: {name} has {found} frozen units, protected.json says {entries[name]['n_frozen']}; "
                f"{again(path.parent)}"
            )
    return units


def freeze_for_training(unet: torch.nn.Module, protected: Protected) -> Frozen:
    """Put the UNet under its mask, for any trainer; see `Frozen` for what to do with the result.

    Edited tensors are loaded before (`load_tensors`): what is frozen keeps the value it has now.
    """
    return Frozen(unet, protected.frozen, protected.frozen_units, protected.granularity)


@torch.no_grad()
def load_tensors(unet: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into the UNet by name; unknown names and other shapes are refused."""
    parameters = named_tensors(unet)
    check_names(tensors, parameters)
    for name, value in tensors.items():
        if value.shape != parameters[name].shape:
            raise FreezeAsGuardError(f"{name} is {tuple(value.shape)}, the model's {tuple(parameters[name].shape)}")
    for name, value in tensors.items():
        parameters[name].copy_(value)


def load_adapted(model: Path, folder: Path, user: str) -> torch.nn.Module:
    """The UNet as one user left it: a side's, or the user of one of its classes (see `sides.user_name`)."""
    path = folder / f"{user}.safetensors"
    remedy = f"run `dvc repro -f adapt@{folder.parent.name}-{folder.name}`"
    changed = read_tensors(path, remedy)
    unet = load_unet(model)
    check_values(path, changed, tensor_shapes(named_tensors(unet)), remedy)
    load_tensors(unet, changed)
    return unet
