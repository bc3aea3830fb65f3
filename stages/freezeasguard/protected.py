"""A protected model: the one interface between the methods and everything after them.

A folder with `protected.json` (method, frozen tensors by name with their shapes, hash of the model they
belong to, diagnostics) and, where the method edits weights, `edited.safetensors` by name. The full arm
fills it with nothing; users, generators and scores are blind to the method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from freezeasguard.diffusion import load_unet, model_hash, named_tensors
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import folder_atomically, read_json, write_json
from freezeasguard.mask import check_names

FORMAT = 1


@dataclass(frozen=True)
class Protected:
    method: str
    frozen: frozenset[str] = frozenset()
    edited: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """rho, preset, seed and whatever else made it."""
    diagnostics: Mapping[str, Any] = field(default_factory=dict)


def write_protected(folder: Path, protected: Protected, shapes: Mapping[str, list[int]], model: str) -> None:
    """Write the folder whole or not at all.

    Args:
        shapes: of every tensor of the model, by name; model: its hash (see `model_hash`).
    """
    check_names(protected.frozen, shapes)
    check_names(protected.edited, shapes)
    content = {
        "format": FORMAT,
        "method": protected.method,
        "model_sha256": model,
        "n_tensors": len(shapes),
        "frozen": {name: list(shapes[name]) for name in sorted(protected.frozen)},
        "edited": {name: list(shapes[name]) for name in sorted(protected.edited)},
        "settings": dict(protected.settings),
        "diagnostics": dict(protected.diagnostics),
    }
    with folder_atomically(folder) as temporary:
        if protected.edited:
            tensors = {n: t.detach().contiguous() for n, t in sorted(protected.edited.items())}
            save_file(tensors, temporary / "edited.safetensors")
        write_json(temporary / "protected.json", content)


def read_protected_file(folder: Path) -> dict[str, Any]:
    """`protected.json` as it stands, its format checked."""
    path = folder / "protected.json"
    content = read_json(path, "write it with one of the protection stages, e.g. `dvc repro learn_mask`")
    if content.get("format") != FORMAT:
        raise FreezeAsGuardError(f"{path} has format {content.get('format')}; this version reads {FORMAT}")
    return content


def read_protected(folder: Path, unet: torch.nn.Module) -> Protected:
    """Read the folder and check that it belongs to `unet`: names, shapes and hash of its weights."""
    content = read_protected_file(folder)
    tensors = named_tensors(unet)
    for kind in ("frozen", "edited"):
        check_names(content[kind], tensors)
        for name, shape in content[kind].items():
            if list(tensors[name].shape) != shape:
                raise FreezeAsGuardError(
                    f"{folder / 'protected.json'}: {name} is {shape} in the mask and "
                    f"{list(tensors[name].shape)} in the model; it was made for another model"
                )
    if (found := model_hash(tensors)) != content["model_sha256"]:
        raise FreezeAsGuardError(
            f"{folder / 'protected.json'} belongs to the model {content['model_sha256'][:12]}, this one is "
            f"{found[:12]}: same shapes, other weights. Learn a mask for this model"
        )
    edited: dict[str, Tensor] = {}
    if content["edited"]:
        path = folder / "edited.safetensors"
        if not path.is_file():
            raise FreezeAsGuardError(f"{path} is missing; run the protection stage again")
        edited = load_file(path)
        if edited.keys() != content["edited"].keys():
            raise FreezeAsGuardError(f"{path} and protected.json name different tensors; run the stage again")
    return Protected(
        content["method"], frozenset(content["frozen"]), edited, content["settings"], content["diagnostics"]
    )


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


def load_adapted(model: Path, folder: Path, side: str) -> torch.nn.Module:
    """The UNet as one side's user left it."""
    path = folder / f"{side}.safetensors"
    if not path.is_file():
        raise FreezeAsGuardError(f"{path} is missing; run `dvc repro adapt`")
    unet = load_unet(model)
    load_tensors(unet, load_file(path))
    return unet
