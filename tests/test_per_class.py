"""A small model of every real part through adapt and generate: one user a class, and what a kill leaves of images."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file

from conftest import CHANNELS, SIZE, TEXT, TOKENS
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models import computing, encode, generate
from freezeasguard.models.diffusion import decode_latents, encode_images, stored_tensors
from freezeasguard.models.generate import generate_cell
from freezeasguard.models.latents import CaseData
from freezeasguard.models.protected import Protected, write_for
from freezeasguard.reports.measures import read_losses
from freezeasguard.scores.score import read_final_losses
from freezeasguard.settings.compute import PLAIN, Compute
from freezeasguard.settings.resolve import AdaptSettings, EncodeSettings, GenerateSettings
from freezeasguard.settings.users import Adapt, Generate
from freezeasguard.sides import SIDES
from freezeasguard.users import adapt
from freezeasguard.users.adapt import adapt_cell

CLASSES = {"illegal": ("Ann B.", "cy"), "legal": ("dee", "Eve")}
ADAPT = Adapt(steps=2, batch_size=2, lr=1e-2, per_class=True)
IMAGES = Generate(
    steps=2, guidance_scale=2, prompts_per_side=2, held_out_prompts_per_side=0, images_per_prompt=3, batch_size=2
)


@pytest.fixture
def model(tiny_unet: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            latent_channels=CHANNELS,
            norm_num_groups=4,
        )
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    for name, part in {"unet": tiny_unet, "vae": vae, "scheduler": scheduler}.items():
        part.save_pretrained(folder / name)
    for name in ("text_encoder", "tokenizer"):
        (folder / name).mkdir()
    (folder / "text_encoder/model.safetensors").touch()
    return folder


@pytest.fixture
def data() -> CaseData:
    """Two images of each class to adapt on, and one that the mask was learned from."""
    parts = ("adaptation", "adaptation", "mask_learning")
    rows = [(side, name, part) for side in SIDES for name in CLASSES[side] for part in parts]
    index = pd.DataFrame(rows, columns=["side", "class", "part"]).assign(row=range(len(rows)))
    index["caption"] = [f"{name} {row}" for name, row in zip(index["class"], index["row"], strict=True)]
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(len(rows), 2, CHANNELS, SIZE, SIZE, generator=draw)
    return CaseData(index, latents, torch.randn(len(rows), TOKENS, TEXT, generator=draw), torch.zeros(TOKENS, TEXT))


def generated(model: Path, adapted: Path, data: CaseData, out: Path, compute: Compute = PLAIN) -> dict[str, bytes]:
    settings = GenerateSettings(seed=0, compute=compute, generate=IMAGES)
    generate_cell(settings, model, adapted, data, out, "case arm", "cpu", 1)
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_one_user_a_class_trains_on_its_class_and_makes_its_images(
    model: Path, data: CaseData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: dict[str, list[float]] = {}
    finetune = adapt.attacker("compliant").__globals__["finetune"]

    def watched(unet: Any, schedule: Any, images: Any, settings: Any, **how: Any) -> list[float]:
        trained[how["description"]] = sorted(images.latents[:, 0, 0, 0, 0].tolist())
        return finetune(unet, schedule, images, settings, **how)

    monkeypatch.setattr("freezeasguard.users.compliant.finetune", watched)
    monkeypatch.setattr(adapt, "fixed_noise_losses", partial(adapt.fixed_noise_losses, n=8))
    monkeypatch.setattr(adapt, "fixed_noise_loss", partial(adapt.fixed_noise_loss, n=8))
    write_for(stored_tensors(model), tmp_path / "protected", Protected("full"))
    out, costs = tmp_path / "adapted", tmp_path / "costs.json"
    settings = AdaptSettings(seed=0, finetuning=ADAPT)
    adapt_cell(settings, model, tmp_path / "protected", data, out, "case-arm", "cpu", 1, costs)

    users = {"illegal/ann-b", "illegal/cy", "legal/dee", "legal/eve"}
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {f"{user}.safetensors" for user in users} | {f"{side}.json" for side in SIDES}
    assert set(json.loads(costs.read_text())) == users
    for user, name in {"illegal-ann-b": "Ann B.", "legal-eve": "Eve"}.items():
        rows = data.index.index[(data.index["class"] == name) & (data.index["part"] == "adaptation")]
        assert trained[f"fine-tuning case-arm-{user}"] == sorted(data.latents[rows, 0, 0, 0, 0].tolist())
    assert len(trained) == 4

    # What reads a side's losses finds the means of its classes.
    record = json.loads((out / "illegal.json").read_text())
    each = [record["classes"][name] for name in ("ann-b", "cy")]
    assert read_losses(out, "illegal") == pytest.approx(np.mean([user["losses"] for user in each], axis=0))
    fixed = read_final_losses(out)
    assert fixed["illegal"].mean == pytest.approx(np.mean([user["fixed_noise_loss"] for user in each]))
    assert fixed["illegal"].quarters == pytest.approx(np.mean([user["fixed_noise_quarters"] for user in each], axis=0))
    assert fixed["illegal"].mean == pytest.approx(np.mean(fixed["illegal"].quarters))
    assert fixed["illegal"].held_out is None  # these classes have no held-out images
    assert each[0]["losses"] != each[1]["losses"] and record["n_images"] == 4 and set(fixed) == set(SIDES)

    # A class's images are those that its own user makes, whatever the others did.
    before = generated(model, out, data, tmp_path / "images")
    rows = pd.read_csv(tmp_path / "images/index.csv")
    tensors = load_file(out / "illegal/ann-b.safetensors")
    save_file({name: tensor * 0.9 for name, tensor in tensors.items()}, out / "illegal/ann-b.safetensors")
    after = generated(model, out, data, tmp_path / "images")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == set(rows.loc[rows["class"] == "Ann B.", "file"]) and len(before) == 4 * 3 + 1


def test_classes_that_would_share_a_user_are_refused(data: CaseData, tmp_path: Path) -> None:
    twice = data.index.assign(**{"class": data.index["class"].replace("cy", "ann b")})
    odd = CaseData(twice, data.latents, data.text, data.empty_text)
    with pytest.raises(FreezeAsGuardError, match="two classes of the illegal side would be one user, illegal/ann-b"):
        adapt_cell(AdaptSettings(seed=0, finetuning=ADAPT), Path(), Path(), odd, tmp_path / "out", "c", "cpu", 1)


@pytest.fixture
def adapted(tmp_path: Path) -> Path:
    """Two sides' users who changed nothing but a bias."""
    folder = tmp_path / "adapted"
    folder.mkdir()
    for number, side in enumerate(SIDES):
        save_file({"conv_out.bias": torch.full((CHANNELS,), 0.1 * number)}, folder / f"{side}.safetensors")
    return folder


class Killed(BaseException):
    pass


def killed_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int | None = None) -> list[int]:
    """Calls of the module's function, which ends the process at one of them."""
    work, calls = getattr(module, name), []

    def counted(*args: Any, **how: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return work(*args, **how)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_a_killed_generation_goes_on_by_batch_and_ends_bit_for_bit(
    model: Path, data: CaseData, adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generated(model, adapted, data, tmp_path / "whole")
    waiting = tmp_path / "checkpoints"
    assert not list(waiting.iterdir())
    with monkeypatch.context() as patch:
        killed_at(patch, generate, "decode_latents", call=5)  # three batches a side: the second's of the legal one
        with pytest.raises(Killed):
            generated(model, adapted, data, tmp_path / "killed")
    assert not (tmp_path / "killed").exists() and len(list(waiting.rglob("*.png"))) == 8
    next(waiting.rglob("legal/*.png")).unlink()  # killed in the midst of writing a batch: the whole batch again
    calls = killed_at(monkeypatch, generate, "decode_latents")
    assert generated(model, adapted, data, tmp_path / "killed") == expected
    assert len(calls) == 3 and not list(waiting.iterdir())


@pytest.mark.parametrize("other", ["weights", "settings", "prompts"])
def test_images_of_another_run_are_not_taken_up(
    other: str, model: Path, data: CaseData, adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_at(patch, generate, "decode_latents", call=3)
        with pytest.raises(Killed):
            generated(model, adapted, data, tmp_path / "out")
    if other == "weights":
        save_file({"conv_out.bias": torch.full((CHANNELS,), 0.7)}, adapted / "illegal.safetensors")
    elif other == "settings":
        monkeypatch.setitem(globals(), "IMAGES", IMAGES.model_copy(update={"guidance_scale": 3.0}))
    else:
        data = CaseData(data.index, data.latents, data.text.flip(0), data.empty_text)
    calls = killed_at(monkeypatch, generate, "decode_latents")
    found = generated(model, adapted, data, tmp_path / "out")
    assert len(calls) == 6
    assert generated(model, adapted, data, tmp_path / "fresh") == found


def test_the_sampler_in_bfloat16_stays_near_float32(
    model: Path, data: CaseData, adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(computing, "LOW_PRECISION", {"cpu"})
    for name, precision in {"plain": "float32", "low": "bfloat16"}.items():
        generated(model, adapted, data, tmp_path / name, Compute(precision=precision))  # type: ignore[arg-type]
    pairs = [(path, tmp_path / "low" / path.relative_to(tmp_path / "plain")) for path in tmp_path.glob("plain/*/*.png")]
    images = [[np.asarray(Image.open(path), dtype=float) for path in pair] for pair in pairs]
    differences = [float(np.abs(a - b).mean()) for a, b in images]
    assert len(differences) == 12 and 0 < max(differences) < 8


def test_a_killed_encoding_goes_on_by_chunk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    rows = [{"class": "ab"[i % 2], "part": "adaptation", "path": f"{i}.png", "sha256": str(i)} for i in range(5)]
    for row in rows:
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / row["path"])
    pd.DataFrame(rows).assign(subject="s", caption="c").to_csv(tmp_path / "split.csv", index=False)
    for name, fake in {
        "load_text": lambda _: (None, torch.nn.Identity()),
        "tokenize": lambda _, captions: (captions, 0),
        "encode_text": lambda _, captions: torch.zeros(len(captions), 1, 1),
        "CHUNK": 2,
    }.items():
        monkeypatch.setattr(encode, name, fake)

    def encoded(name: str) -> bytes:
        settings = EncodeSettings(seed=0, roles="given", illegal=["a"], legal=["b"])
        encode.encode_case(settings, model, tmp_path, tmp_path, tmp_path / name)
        return (tmp_path / name / "latents.safetensors").read_bytes()

    expected = encoded("whole")
    with monkeypatch.context() as patch:
        killed_at(patch, encode, "encode_images", call=4)  # the mirrored images of the second of three chunks
        with pytest.raises(Killed):
            encoded("killed")
    calls = killed_at(monkeypatch, encode, "encode_images")
    assert encoded("killed") == expected and len(calls) == 4
    assert not list((tmp_path / "checkpoints").iterdir())


def test_large_images_go_through_the_vae_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: four of 512 px, one of 1024 px; a small one's batch stays what it was."""
    vae = AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=CHANNELS,
        norm_num_groups=4,
    )
    sizes: list[int] = []
    for part in (vae.encoder, vae.decoder):
        part.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    monkeypatch.setattr("freezeasguard.models.diffusion.PIXELS_AT_ONCE", 4 * 32 * 32)
    for size, expected in {32: [4, 1], 64: [1] * 5, 16: [5]}.items():
        sizes.clear()
        latents = encode_images(vae, torch.zeros(5, 3, size, size))
        decode_latents(vae, latents)
        assert sizes == expected * 2
