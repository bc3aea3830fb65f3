"""CSD's loader on a small random ViT in the released format, against OpenAI CLIP's forward pass written out."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.images import to_uint8
from freezeasguard.scores.networks.csd import CLIP_MEAN, CLIP_STD, CSDStyle
from freezeasguard.scores.networks.resize import resize_and_crop

WIDTH, HEADS, LAYERS, PATCH, SIDE, DIMENSION = 128, 2, 3, 8, 4, 10


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """As `CSD_CLIP.state_dict()` names them, with values large enough that each matters."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 0.2, centre: float = 0.0) -> Tensor:
        return centre + scale * torch.randn(shape, generator=generator)

    state = {
        "backbone.class_embedding": draw(WIDTH, scale=1),
        "backbone.positional_embedding": draw(SIDE * SIDE + 1, WIDTH, scale=1),
        "backbone.conv1.weight": draw(WIDTH, 3, PATCH, PATCH),
        "last_layer_style": draw(WIDTH, DIMENSION),
        "last_layer_content": draw(WIDTH, DIMENSION),
    }
    norms = ["ln_pre", "ln_post"]
    for i in range(LAYERS):
        block = f"transformer.resblocks.{i}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        for name, n_out, n_in in (
            ("attn.out_proj.", WIDTH, WIDTH),
            ("attn.in_proj_", 3 * WIDTH, WIDTH),
            ("mlp.c_fc.", 4 * WIDTH, WIDTH),
            ("mlp.c_proj.", WIDTH, 4 * WIDTH),
        ):
            state[f"backbone.{block}.{name}weight"] = draw(n_out, n_in)
            state[f"backbone.{block}.{name}bias"] = draw(n_out)
    for name in norms:
        state[f"backbone.{name}.weight"] = draw(WIDTH, centre=1.0)
        state[f"backbone.{name}.bias"] = draw(WIDTH)
    return state


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def openai_style(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    """OpenAI CLIP's VisionTransformer without its projection, then CSD's style head."""
    backbone = {name.removeprefix("backbone."): t for name, t in tensors.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), backbone[f"{name}.weight"], backbone[f"{name}.bias"])

    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]
    pixels = ((images + 1) / 2 - mean) / std
    x = F.conv2d(pixels, backbone["conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([backbone["class_embedding"].expand(len(x), 1, WIDTH), x], dim=1)
    x = norm(x + backbone["positional_embedding"], "ln_pre")
    for i in range(LAYERS):
        block = f"transformer.resblocks.{i}"
        attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        prefix = f"{block}.attn."
        attention.load_state_dict({n.removeprefix(prefix): t for n, t in backbone.items() if n.startswith(prefix)})
        y = norm(x, f"{block}.ln_1")
        x = x + attention(y, y, y, need_weights=False)[0]
        y = norm(x, f"{block}.ln_2")
        y = F.linear(y, backbone[f"{block}.mlp.c_fc.weight"], backbone[f"{block}.mlp.c_fc.bias"])
        y = y * torch.sigmoid(1.702 * y)
        x = x + F.linear(y, backbone[f"{block}.mlp.c_proj.weight"], backbone[f"{block}.mlp.c_proj.bias"])
    return F.normalize(norm(x[:, 0], "ln_post") @ tensors["last_layer_style"], dim=1).detach()


def saved(checkpoint: object, path: Path) -> Path:
    torch.save(checkpoint, path)
    return path


def as_trained(tensors: dict[str, Tensor]) -> dict[str, object]:
    """With what CSD's training saved beside the weights: command line, NumPy learning rates."""
    return {
        "model_state_dict": {f"module.{name}": t for name, t in tensors.items()},
        "opt_bb": {"state": {}, "param_groups": [{"lr": np.float64(1e-4), "params": [0]}]},
        "iter": 80,
        "args": argparse.Namespace(lr=1e-3),
    }


@pytest.mark.parametrize(
    "checkpoint",
    [
        as_trained,
        lambda t: {"model_state_dict": t},
        lambda t: t,
        lambda t: {**t, "backbone.proj": torch.zeros(WIDTH, DIMENSION)},
    ],
    ids=["released", "no module.", "tensors alone", "with CLIP's projection"],
)
def test_agrees_with_openais_forward_pass(
    checkpoint: Callable[[dict[str, Tensor]], object], tensors: dict[str, Tensor], images: Tensor, tmp_path: Path
) -> None:
    style = CSDStyle.load(saved(checkpoint(tensors), tmp_path / "pytorch_model.bin"))
    embeddings = style.extract(images, batch_size=2)
    expected = openai_style(tensors, images)
    torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5))
    # The random network tells images apart, so agreement means something.
    assert (expected - expected.mean(0)).norm(dim=1).min() > 0.05


def test_safetensors_and_half_precision(tensors: dict[str, Tensor], images: Tensor, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    expected = openai_style(tensors, images)
    exact = CSDStyle.load(tmp_path / "model.safetensors").extract(images)
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-5)
    half = saved({name: t.half() for name, t in tensors.items()}, tmp_path / "half.pth")
    rounded = CSDStyle.load(half).extract(images)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, expected, rtol=0, atol=2e-2)


def test_every_tensor_is_used(tensors: dict[str, Tensor], images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "csd.pth"
    whole = CSDStyle.load(saved(tensors, path)).extract(images)
    for name in tensors:
        if name == "last_layer_content":
            continue
        changed = {**tensors, name: tensors[name] * torch.linspace(0.2, 1.8, tensors[name].shape[-1])}
        embeddings = CSDStyle.load(saved(changed, path)).extract(images)
        assert not torch.allclose(embeddings, whole, rtol=0, atol=1e-4), name


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("last_layer_style", "lacks last_layer_style: not a CSD checkpoint"),
        ("backbone.ln_post.bias", r"lacks 1 of the backbone's \d+ tensors, e.g. backbone.ln_post.bias"),
        ("backbone.transformer.resblocks.1.mlp.c_fc.weight", "e.g. backbone.transformer.resblocks.1.mlp.c_fc.weight"),
        ("backbone.", "lacks 19 of the backbone's 19 tensors"),
    ],
)
def test_missing_tensors_are_named(tensors: dict[str, Tensor], lost: str, message: str, tmp_path: Path) -> None:
    left = {name: t for name, t in tensors.items() if not name.startswith(lost)}
    with pytest.raises(FreezeAsGuardError, match=message):
        CSDStyle.load(saved({"model_state_dict": left}, tmp_path / "csd.pth"))


def test_other_files_are_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "csd.pth"
    with pytest.raises(FreezeAsGuardError, match="is missing; download https://huggingface.co/tomg-group-umd"):
        CSDStyle.load(path)
    path.write_text("<!doctype html>")
    with pytest.raises(FreezeAsGuardError, match="cannot be read as a checkpoint"):
        CSDStyle.load(path)
    with pytest.raises(FreezeAsGuardError, match="holds no tensors by name"):
        CSDStyle.load(saved({"iter": 3}, path))
    with pytest.raises(FreezeAsGuardError, match="1 tensors that CSD does not have, e.g. head.weight"):
        CSDStyle.load(saved({**tensors, "head.weight": torch.zeros(2)}, path))
    with pytest.raises(FreezeAsGuardError, match="1 tensors CSD does not have, e.g. backbone.fc.bias"):
        CSDStyle.load(saved({**tensors, "backbone.fc.bias": torch.zeros(2)}, path))
    with pytest.raises(FreezeAsGuardError, match=r"last_layer_style is \[64, 10\], the backbone 128 wide"):
        CSDStyle.load(saved({**tensors, "last_layer_style": torch.zeros(64, 10)}, path))
    with pytest.raises(FreezeAsGuardError, match="do not fit together"):
        CSDStyle.load(saved({**tensors, "backbone.ln_pre.bias": torch.zeros(64)}, path))


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("code from a checkpoint",))


def test_no_code_runs_from_a_checkpoint(
    tensors: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FreezeAsGuardError, match="cannot be read as a checkpoint"):
        CSDStyle.load(saved({"model_state_dict": tensors, "args": Payload()}, tmp_path / "csd.pth"))
    assert "code from" not in capsys.readouterr().out


@pytest.mark.parametrize("size", [(48, 80), (80, 48), (32, 32), (20, 20), (37, 53)])
def test_preprocessing_is_pils(size: tuple[int, int]) -> None:
    # Smooth images: PIL rounds to grey levels between its two passes.
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(2)) * 2 - 1
    image = F.interpolate(coarse, size=size, mode="bilinear", align_corners=True)
    pixels = to_uint8(image)
    ours = to_uint8(resize_and_crop(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1, 32))[0]
    height, width = size
    resized = Image.fromarray(pixels[0]).resize(
        (max(32, int(width * 32 / min(size))), max(32, int(height * 32 / min(size)))), Image.Resampling.BICUBIC
    )
    left, top = round((resized.width - 32) / 2), round((resized.height - 32) / 2)
    pil = np.asarray(resized.crop((left, top, left + 32, top + 32)))
    assert ours.shape == pil.shape == (32, 32, 3)
    assert np.abs(ours.astype(int) - pil).max() <= 1
