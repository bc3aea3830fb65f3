"""The shipped miniature model: its layout, its size, its gates."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.miniature.gates import read_gates
from freezeasguard.miniature.gates_figures import figure_gates
from freezeasguard.models.diffusion import load_unet, load_vae, model_hash, named_tensors, stored_tensors
from freezeasguard.scores.networks.recogniser import Recogniser

ROOT = Path(__file__).parent.parent
MODEL, SCORERS = ROOT / "data/models/tiny-1.5", ROOT / "data/models/scorers"


def test_stored_gates_hold() -> None:
    gates = read_gates(MODEL)
    assert {g.name for g in gates} >= {"vae_auc_ratio", "prompt_retrieval", "no_knowledge", "adaptation_gain"}
    assert {g.name for g in gates} >= {"style_vae_auc_ratio", "explicit_auc_vae", "orl_auc_vae"}
    assert [g.name for g in gates if g.passed is False] == []


def test_figure_gates_measured_afresh() -> None:
    assert [g.name for g in figure_gates(MODEL, SCORERS) if g.passed is False] == []


def test_686_tensors_and_size() -> None:
    assert len(list(load_unet(MODEL).parameters())) == 686
    total = sum(p.stat().st_size for folder in (MODEL, SCORERS) for p in folder.rglob("*") if p.is_file())
    assert total <= 25 * 2**20


def test_plain_pipeline_loads_and_draws() -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(MODEL)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    image = pipeline("a photo of a person", num_inference_steps=2, generator=generator).images[0]
    assert image.size == (64, 64)


def unet_alone(folder: Path) -> Path:
    """A model folder that shares all but its UNet, which is to be written, with the shipped one."""
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        (folder / part).symlink_to(MODEL / part)
    return folder / "unet"


def assert_stored_as_loaded(model: Path) -> None:
    stored, loaded = stored_tensors(model), named_tensors(load_unet(model))
    assert stored.keys() == loaded.keys() and len(stored) == 686
    assert all(torch.equal(stored[name].float(), loaded[name].detach()) for name in loaded)
    assert model_hash(stored) == model_hash(loaded)


def test_stored_tensors_are_those_of_the_loaded_network() -> None:
    assert_stored_as_loaded(MODEL)


def test_stored_tensors_of_a_model_in_shards(tmp_path: Path) -> None:
    unet = unet_alone(tmp_path)
    load_unet(MODEL).save_pretrained(unet, max_shard_size="4MB")
    shards = sorted(unet.glob("*.safetensors"))
    assert len(shards) > 2
    assert_stored_as_loaded(tmp_path)
    shards[0].unlink()
    with pytest.raises(FreezeAsGuardError, match=f"{shards[0].name} is missing"):
        stored_tensors(tmp_path)
    shutil.copyfile(shards[1], shards[0])
    with pytest.raises(FreezeAsGuardError, match="index.json names .*, which no file holds"):
        stored_tensors(tmp_path)


def test_stored_tensors_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    unet = unet_alone(tmp_path)
    unet.mkdir()
    weights = (MODEL / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    (unet / "diffusion_pytorch_model.fp16.safetensors").write_bytes(weights)
    with pytest.raises(FreezeAsGuardError, match=r"is missing \(.* holds diffusion_pytorch_model\.fp16\.safetensors\)"):
        stored_tensors(tmp_path)
    (unet / "diffusion_pytorch_model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(FreezeAsGuardError, match="cannot load .*fetch the model again"):
        stored_tensors(tmp_path)


def test_blind_stages_load_no_network_library() -> None:
    code = (
        "import sys; from pathlib import Path; from stages import protect; "
        "from freezeasguard.protections import random_freezing, unprotected; "
        f"from freezeasguard.models.diffusion import stored_tensors; stored_tensors(Path({str(MODEL)!r})); "
        "print([m for m in ('diffusers', 'transformers', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(FreezeAsGuardError, match="unet"):
        load_unet(tmp_path)
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (tmp_path / part).mkdir()
    with pytest.raises(FreezeAsGuardError, match=r"vae/\*\.safetensors"):
        load_vae(tmp_path)
    with pytest.raises(FreezeAsGuardError, match="recogniser.safetensors is missing"):
        Recogniser.load(tmp_path)
