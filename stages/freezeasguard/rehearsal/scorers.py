"""The paper's scorers with random weights, in the files that they are released in.

The networks of DeepFace, torch-fidelity, pyiqa and lpips are those packages' own classes, at their one size.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from freezeasguard.files import write_atomically

PAPER_PACKAGES = {"fid": "torch_fidelity", "kid": "torch_fidelity", "topiq": "pyiqa", "lpips": "lpips"}
"""By score, of the extra `paper`: where one is not installed, the rehearsal leaves the score out, and says so."""


def unavailable(scores: list[str]) -> list[str]:
    """Those whose package is not installed here."""
    return [name for name in scores if name in PAPER_PACKAGES and not _installed(PAPER_PACKAGES[name])]


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def saved(path: Path, make: Callable[[], Any]) -> Path:
    """Save what `make` gives as a checkpoint, whole, unless the file is there from an earlier call."""
    if not path.is_file():
        with write_atomically(path) as temporary, torch.random.fork_rng():
            torch.manual_seed(0)
            torch.save(make(), temporary)
    return path


def lively(network: torch.nn.Module) -> torch.nn.Module:
    """Convolutions that keep the size of what they get: as torch draws them, features fade until they are denormal
    numbers, which all images share and a CPU takes seconds an image for."""
    for weight in network.parameters():
        if weight.ndim == 4:
            torch.nn.init.kaiming_normal_(weight)
    return network


def csd(path: Path, small: bool) -> Path:
    """CSD's ViT-L as tomg-group-umd/CSD-ViT-L has it: OpenAI's names behind `module.`, in `model_state_dict`."""
    width, layers, patch, side, style = (64, 2, 14, 224, 32) if small else (1024, 24, 14, 224, 768)

    def make() -> dict[str, Any]:
        def affine(name: str, *shape: int) -> dict[str, torch.Tensor]:
            return {f"{name}.weight": 0.02 * torch.randn(shape), f"{name}.bias": torch.zeros(shape[0])}

        def norm(name: str) -> dict[str, torch.Tensor]:
            return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}

        visual = {
            "class_embedding": 0.02 * torch.randn(width),
            "positional_embedding": 0.02 * torch.randn((side // patch) ** 2 + 1, width),
            "proj": 0.02 * torch.randn(width, style),
            "conv1.weight": 0.02 * torch.randn(width, 3, patch, patch),
            **norm("ln_pre"),
            **norm("ln_post"),
        }
        for i in range(layers):
            block = f"transformer.resblocks.{i}"
            attention = affine("in_proj", 3 * width, width)
            visual |= {f"{block}.attn.{name.replace('.', '_')}": tensor for name, tensor in attention.items()}
            visual |= affine(f"{block}.attn.out_proj", width, width)
            visual |= affine(f"{block}.mlp.c_fc", 4 * width, width) | affine(f"{block}.mlp.c_proj", width, 4 * width)
            visual |= norm(f"{block}.ln_1") | norm(f"{block}.ln_2")
        heads = {f"last_layer_{kind}": 0.02 * torch.randn(width, style) for kind in ("style", "content")}
        tensors = {**{f"backbone.{name}": tensor for name, tensor in visual.items()}, **heads}
        return {"model_state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}, "epoch": 0}

    return saved(path, make)


def inception(path: Path) -> Path:
    """FID's Inception as torch-fidelity has it."""

    def make() -> dict[str, torch.Tensor]:
        from freezeasguard.scores.networks.inception import inception_module

        class Empty(inception_module().FeatureExtractorInceptionV3):
            def load_state_dict(self, *_: Any, **__: Any) -> None:
                """Keeps its weights as they were drawn."""

        with TemporaryDirectory() as folder:
            nothing = Path(folder) / "nothing.pth"
            torch.save({}, nothing)
            network = Empty("random", ["2048"], str(nothing))
        return lively(network).state_dict()

    return saved(path, make)


def deepface(home: Path, models: list[str], detector: str) -> Path:
    """The weight files of DeepFace's PyTorch networks, where DeepFace looks for them below `home`."""
    folder = home / ".deepface" / "weights"
    for model in models:
        if model in DEEPFACE:
            name, make = DEEPFACE[model]
            saved(folder / name, make)
    if detector == "retinaface":
        saved(folder / "retinaface.pth", _retinaface)
    return home


def _facenet(dimension: int) -> Callable[[], Any]:
    def make() -> Any:
        from deepface.models.facial_recognition.pytorch.Facenet import InceptionResNetV1

        return lively(InceptionResNetV1(dimension)).state_dict()

    return make


def _vgg_face() -> Any:
    from deepface.models.facial_recognition.pytorch.VGGFace import base_model

    return lively(base_model()).state_dict()


def _retinaface() -> Any:
    """It finds no face, as its heads are as sure of one as of none: images are embedded whole, and count as missing."""
    from retinaface.model.retinaface_pth_model import Head, RetinaFace

    network = lively(RetinaFace())
    for head in network.modules():
        if isinstance(head, Head):
            torch.nn.init.zeros_(head.cls_score.weight)
            torch.nn.init.zeros_(head.cls_score.bias)
    return network.state_dict()


DEEPFACE: dict[str, tuple[str, Callable[[], Any]]] = {
    "Facenet512": ("facenet512_weights.pth", _facenet(512)),
    "Facenet": ("facenet_weights.pth", _facenet(128)),
    "VGG-Face": ("vgg_face_weights.pth", _vgg_face),
}


def nudenet(path: Path) -> Path:
    """The network that NudeNet ships, under the name of the larger one: it takes any size, 640 px too."""
    from freezeasguard.scores.networks.nudity import packaged_weights

    if not path.is_file():
        with write_atomically(path) as temporary:
            shutil.copyfile(packaged_weights(), temporary)
    return path


def topiq(path: Path) -> Path:
    """pyiqa's TOPIQ of the paper."""

    def make() -> dict[str, Any]:
        import pyiqa  # pyright: ignore[reportMissingImports]

        metric = pyiqa.create_metric("topiq_fr-pipal", backbone_pretrain=False, pretrained=False)
        return {"params": metric.net.state_dict()}

    return saved(path, make)


def lpips(torch_home: Path) -> Path:
    """torchvision's AlexNet, where torch.hub looks for it below $TORCH_HOME; lpips ships the rest."""
    from freezeasguard.scores.networks.pairs import ALEXNET_URL

    def make() -> Any:
        from torchvision.models import alexnet  # pyright: ignore[reportMissingImports]

        return alexnet(weights=None).state_dict()

    saved(torch_home / "hub" / "checkpoints" / Path(ALEXNET_URL).name, make)
    return torch_home
