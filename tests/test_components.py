"""Component freezing (paper, Table 1): which tensors, on the miniature and on Stable Diffusion's own configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.diffusion import named_tensors
from freezeasguard.models.protected import read_protected, tensor_shapes
from freezeasguard.protections.components import component_tensors
from freezeasguard.protections.protect import Inputs, protect_case
from freezeasguard.settings.resolve import ProtectSettings

COUNTS = {
    "attention": 16 * 2 * 5,  # 16 transformers of two attentions: to_q, to_k, to_v without bias, to_out with one
    "time_embedding": 22 * 2 + 2 * 2,  # 22 resnets' projections, and the embedding's two layers
}
SD_2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}


def sd_unet(**other: Any) -> torch.nn.Module:
    """Stable Diffusion's UNet at its real size, without memory behind it."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**{"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8, **other})


@pytest.mark.parametrize("of", ["miniature", "sd-1.5", "sd-2.1"])
def test_a_component_is_all_of_its_modules_and_nothing_else(of: str, tiny_unet: torch.nn.Module) -> None:
    unet = {"miniature": lambda: tiny_unet, "sd-1.5": sd_unet, "sd-2.1": lambda: sd_unet(**SD_2)}[of]()
    shapes = {name: list(tensor.shape) for name, tensor in unet.named_parameters()}
    found = {one: component_tensors(one, shapes) for one in ("attention", "convolutions", "time_embedding")}
    assert len(shapes) == 686 and {one: len(found[one]) for one in COUNTS} == COUNTS
    kinds = {name: module for name, module in unet.named_modules()}
    assert found["convolutions"] == {
        name for name in shapes if isinstance(kinds[name.rpartition(".")[0]], torch.nn.Conv2d)
    }
    # conv_in, conv_out, 22 resnets of two, their shortcuts, 3 down, 3 up; v1.x has 16 pairs of 1x1 projections too.
    shortcuts = sum("conv_shortcut.weight" in name for name in shapes)
    projections = 0 if of == "sd-2.1" else 2 * 16
    assert len(found["convolutions"]) == 2 * (2 + 44 + shortcuts + 6 + projections)
    assert sum(map(len, found.values())) == len(frozenset.union(*found.values()))
    norms = {name for name, module in kinds.items() if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm)}
    weights = {name for name in shapes if name.endswith(".weight")}
    matrices = weights - {f"{name}.weight" for name in norms}
    assert component_tensors("matrices", shapes) == matrices
    assert component_tensors("outside_attention", shapes) == matrices - found["attention"]


@pytest.mark.parametrize("component", ["attention", "convolutions", "time_embedding", "matrices", "outside_attention"])
def test_the_stage_writes_the_whole_component(component: str, tmp_path: Path, tiny_unet: torch.nn.Module) -> None:
    inputs = Inputs(ProtectSettings(seed=0, arm=f"freeze_{component}", rho=0.0), *3 * [tmp_path])
    inputs.__dict__["tensors"] = named_tensors(tiny_unet)
    protect_case(inputs, tmp_path / "p")
    read = read_protected(tmp_path / "p", tiny_unet)
    expected = component_tensors(component, tensor_shapes(named_tensors(tiny_unet)))
    assert read.frozen == expected and read.method == f"freeze_{component}" and not read.edited
    assert read.diagnostics["n_frozen"] == len(expected)


def test_a_network_without_the_component_is_refused() -> None:
    with pytest.raises(FreezeAsGuardError, match="no tensor of the component attention"):
        component_tensors("attention", {"conv_in.weight": [1, 1, 3, 3]})
