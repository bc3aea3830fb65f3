"""Parts of a latent diffusion model: loading, encoding, noise, and THE denoising loss."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.fetch import check_model_folder
from freezeasguard.reading import read_json

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


WEIGHTS = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
"""diffusers' other way of loading needs accelerate, and says so at length where it is not installed."""


def _load(cls: Any, folder: Path, part: str, **options: Any) -> Any:
    check_model_folder(folder)
    try:
        return cls.from_pretrained(folder / part, **options)
    except Exception as error:  # of a torn file: anything from OSError to SafetensorError and KeyError
        reason = " ".join(str(error).split())
        raise FreezeAsGuardError(f"cannot load {folder / part}: {reason}; fetch the model again") from error


def load_unet(folder: Path) -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    return _load(UNet2DConditionModel, folder, "unet", **WEIGHTS).eval()


def load_vae(folder: Path) -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return _load(AutoencoderKL, folder, "vae", **WEIGHTS).eval().requires_grad_(False)


def load_text(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    from transformers import CLIPTextModel, CLIPTokenizer

    encoder = _load(CLIPTextModel, folder, "text_encoder", torch_dtype=torch.float32)
    return _load(CLIPTokenizer, folder, "tokenizer"), encoder.eval().requires_grad_(False)


def load_scheduler(folder: Path) -> Any:
    """The model's own sampler; PNDM for every model of the paper."""
    from diffusers import PNDMScheduler

    return _load(PNDMScheduler, folder, "scheduler")


def model_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values, in the order of the sorted names.

    It says which model a mask was learned for; storage type and order do not change it.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def named_tensors(unet: torch.nn.Module) -> dict[str, Tensor]:
    """The UNet's trainable tensors by name: what a mask freezes."""
    return dict(unet.named_parameters())


def stored_tensors(model: Path) -> dict[str, Tensor]:
    """The UNet's tensors as `named_tensors(load_unet(model))` names them, in the type they are stored in.

    Without diffusers, whose import takes seconds; the files are mapped into memory and read where they are used.
    """
    folder = check_model_folder(model) / "unet"
    weights = folder / "diffusion_pytorch_model.safetensors"
    index = weights.with_suffix(".safetensors.index.json")
    remedy = "fetch the model again"
    names: set[str] = set()
    files = {weights}
    if index.is_file():
        shards = read_json(index, remedy, keys=("weight_map",))["weight_map"]
        names, files = set(shards), {folder / file for file in shards.values()}
    tensors: dict[str, Tensor] = {}
    for path in sorted(files):
        if not path.is_file():
            others = ", ".join(sorted(other.name for other in folder.glob("*.safetensors")))
            raise FreezeAsGuardError(f"{path} is missing ({folder} holds {others}); {remedy}")
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise FreezeAsGuardError(f"cannot load {path}: {error}; {remedy}") from error
    if absent := sorted(names - tensors.keys()):
        raise FreezeAsGuardError(f"{index} names {absent[0]}, which no file holds; {remedy}")
    return tensors


# --- encoding -----------------------------------------------------------------------------------

PIXELS_AT_ONCE = 2**20
"""Through the VAE, which keeps some 10 KB a pixel in float32: four images of 512 px take 10 GiB. Tiles, diffusers'
other way to save memory, would show seams."""


def _at_once(batch_size: int, pixels: int) -> int:
    """How many images of so many pixels each go through the VAE together."""
    return max(1, min(batch_size, PIXELS_AT_ONCE // pixels))


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor, batch_size: int = 8) -> Tensor:
    """Images [n, 3, h, w] in -1..1 -> scaled latents [n, c, h/f, w/f], the posterior's mean.

    Training recipes sample from the posterior; its standard deviation is a few percent of the latents'
    own, and a fixed latent can be computed once. Contiguous, because a VAE may return channels_last and
    torch 2.13's group_norm backward crashes on that when its input needs no gradient.
    """
    device = next(vae.parameters()).device
    parts = [
        vae.encode(batch.to(device)).latent_dist.mean.cpu()  # pyright: ignore[reportAttributeAccessIssue]
        for batch in images.split(_at_once(batch_size, images[0, 0].numel()))
    ]
    return (torch.cat(parts) * vae.config["scaling_factor"]).contiguous()


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Tensor, batch_size: int = 8) -> Tensor:
    """Scaled latents [n, c, h/f, w/f] -> images [n, 3, h, w] in -1..1, or not finite where the VAE overflowed."""
    device = next(vae.parameters()).device
    scaled = latents / vae.config["scaling_factor"]
    n = _at_once(batch_size, latents[0, 0].numel() * 4 ** (len(vae.config["block_out_channels"]) - 1))
    parts = [vae.decode(batch.to(device)).sample.cpu() for batch in scaled.split(n)]  # pyright: ignore
    images = torch.cat(parts)
    return images.clamp(-1, 1).where(images.isfinite(), torch.nan)  # the clamp alone would make infinite values white


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> tuple[Tensor, int]:
    """Token ids [n, model_max_length], padded, and how many captions had to be cut short."""
    full = tokenizer(captions).input_ids
    n_truncated = sum(len(ids) > tokenizer.model_max_length for ids in full)
    padded = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    return padded.input_ids, n_truncated


@torch.no_grad()
def encode_text(encoder: CLIPTextModel, ids: Tensor, batch_size: int = 128) -> Tensor:
    """Token ids [n, tokens] -> the text tower's last hidden state [n, tokens, d]."""
    device = next(encoder.parameters()).device
    parts = [encoder(batch.to(device)).last_hidden_state.cpu() for batch in ids.split(batch_size)]
    return torch.cat(parts)


# --- the forward process and the loss ------------------------------------------------------------


@dataclass(frozen=True)
class NoiseSchedule:
    """q(z_t | z_0) of a DDPM: z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) noise, a_t = `alphas_cumprod[t]`."""

    alphas_cumprod: Tensor
    prediction_type: str = "epsilon"

    def __post_init__(self) -> None:
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise FreezeAsGuardError(f"prediction_type is {self.prediction_type!r}; epsilon and v_prediction are known")

    @classmethod
    def of(cls, scheduler: Any) -> NoiseSchedule:
        return cls(scheduler.alphas_cumprod, scheduler.config.prediction_type)

    @property
    def n_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def _factors(self, like: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        a = self.alphas_cumprod.to(like)[timesteps].view(-1, *[1] * (like.dim() - 1))
        return a.sqrt(), (1 - a).sqrt()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        signal, sigma = self._factors(latents, timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the UNet is asked for: the noise, or v = sqrt(a) noise - sqrt(1 - a) z_0."""
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self._factors(latents, timesteps)
        return signal * noise - sigma * latents


def predict(
    unet: torch.nn.Module, schedule: NoiseSchedule, latents: Tensor, text: Tensor, timesteps: Tensor, noise: Tensor
) -> Tensor:
    """What the UNet says of the noisy latents, [batch, c, h, w]: noise or velocity, as the schedule has it."""
    noisy = schedule.add_noise(latents, noise, timesteps).contiguous()
    return unet(noisy, timesteps, text).sample


def denoising_loss(
    unet: torch.nn.Module,
    schedule: NoiseSchedule,
    latents: Tensor,
    text: Tensor,
    timesteps: Tensor,
    noise: Tensor,
    target: Tensor | None = None,
) -> Tensor:
    """Per-sample denoising loss (paper, Eq. 1): mean squared error at one timestep a sample.

    Args:
        latents, noise: [batch, c, h, w]; text: [batch, tokens, d]; timesteps: int64 [batch].
        target: [batch, c, h, w], another network's prediction in the place of the truth.
    Returns:
        losses [batch]; the caller reduces.
    """
    if target is None:
        target = schedule.target(latents, noise, timesteps)
    return (predict(unet, schedule, latents, text, timesteps, noise) - target).square().flatten(1).mean(1)


def draw_noise(latents: Tensor, n_timesteps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Uniform timesteps [batch] and Gaussian noise like `latents`, drawn on the CPU from `generator`."""
    timesteps = torch.randint(n_timesteps, (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    return timesteps.to(latents.device), noise.to(latents)
