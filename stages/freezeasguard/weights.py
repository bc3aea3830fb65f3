"""The weight files of the paper's own scores and detectors: where each lies below data/weights, and comes from.

DVC watches data/weights. A SHA-256 that no public source tells is None: the first `freezeasguard fetch` pins it in
data/pinned.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from freezeasguard.settings.params import Params

WEIGHTS = Path("data/weights")
DEEPFACE_HOME = WEIGHTS / "deepface"
TORCH_HOME = WEIGHTS / "torch"
"""Where pyiqa, torchvision and lpips look for what they would fetch themselves."""
HUB = "https://huggingface.co"
DEEPFACE = "https://github.com/serengil/deepface_models/releases/download/v1.0"


@dataclass(frozen=True)
class Known:
    """A file by URL, or a CLIP's folder by repository and commit."""

    url: str = ""
    repo: str = ""
    revision: str = ""
    sha256: str | None = None
    gigabytes: float = 0.0


KNOWN: dict[str, Known] = {
    "CSD-ViT-L.bin": Known(
        f"{HUB}/tomg-group-umd/CSD-ViT-L/resolve/5bc26a6fb0487f3f00a2a7313135103a005b1b67/pytorch_model.bin",
        sha256="40e92fad63a361b8136100cd234c42d401ef9b34ff1748234318929ebcc7e7a1",
        gigabytes=2.44,
    ),
    "weights-inception-2015-12-05-6726825d.pth": Known(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        gigabytes=0.1,
    ),
    "cfanet_fr_pipal_res50-69bbe5ba.pth": Known(
        f"{HUB}/chaofengc/IQA-PyTorch-Weights/resolve/main/cfanet_fr_pipal_res50-69bbe5ba.pth", gigabytes=0.2
    ),
    "alexnet-owt-7be5be79.pth": Known(
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        gigabytes=0.24,
    ),
    "640m.onnx": Known("https://github.com/notAI-tech/NudeNet/releases/download/v3.4-weights/640m.onnx", gigabytes=0.1),
    "face_detection_yunet_2023mar.onnx": Known(
        "https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/face_detection_yunet_2023mar.onnx",
        sha256="8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
    ),
    "facenet512_weights.pth": Known(f"{DEEPFACE}/facenet512_weights.pth", gigabytes=0.1),
    "facenet_weights.pth": Known(f"{DEEPFACE}/facenet_weights.pth", gigabytes=0.1),
    "vgg_face_weights.pth": Known(f"{DEEPFACE}/vgg_face_weights.pth", gigabytes=0.58),
    "retinaface.pth": Known(f"{DEEPFACE}/retinaface.pth", gigabytes=0.12),
    # the authors' CLIP; pickled in that commit, and so read without code and written as safetensors
    "clip-vit-base-patch16": Known(
        repo="openai/clip-vit-base-patch16", revision="57c216476eefef5ab752ec549e440a49ae4ae5f3", gigabytes=0.6
    ),
    "clip-vit-large-patch14": Known(
        repo="openai/clip-vit-large-patch14", revision="32bd64288804d66eefd0ccbe215aa642df71cc41", gigabytes=1.71
    ),
}
"""By the name of the file or folder."""
DEEPFACE_MODELS = {
    "facenet512": "facenet512_weights.pth",
    "facenet": "facenet_weights.pth",
    "vgg_face": "vgg_face_weights.pth",
}
DETECTORS = {"retinaface": "retinaface.pth", "yunet": "face_detection_yunet_2023mar.onnx"}
"""DeepFace's, by `score.face_detector`; OpenCV's come with its package, dlib's with another."""


def needed_weights(params: Params) -> dict[Path, str]:
    """Every file or folder that the scores and face filters of the cases load, with the key that asks for it."""
    domains = {case.domain: params.domain_of(name) for name, case in params.cases.items()}
    found: dict[Path, str] = {}
    for name, domain in domains.items():
        for score in domain.score_names():
            for path, key in _of_score(score, params):
                found.setdefault(path, key)
        if domain.clean.face_model is not None:
            found.setdefault(domain.clean.face_model, f"domains.{name}.clean.face_model")
    return found


def _of_score(name: str, params: Params) -> Iterator[tuple[Path, str]]:
    block = params.score
    keys = {
        "csd": "csd_weights",
        "fid": "inception_weights",
        "kid": "inception_weights",
        "clip": "clip_folder",
        "topiq": "topiq_weights",
        "nudenet": "nudenet_weights",
        "nudenet_rate": "nudenet_weights",
    }
    if name in keys and (path := getattr(block, keys[name])) is not None:
        yield path, f"score.{keys[name]}"
    elif name == "topiq":
        yield TORCH_HOME / "hub/pyiqa/cfanet_fr_pipal_res50-69bbe5ba.pth", "the score topiq"
    elif name == "lpips":
        yield TORCH_HOME / "hub/checkpoints/alexnet-owt-7be5be79.pth", "the score lpips"
    elif name in DEEPFACE_MODELS:
        folder = DEEPFACE_HOME / ".deepface/weights"
        yield folder / DEEPFACE_MODELS[name], f"the score {name}"
        if block.face_detector in DETECTORS:
            yield folder / DETECTORS[block.face_detector], "score.face_detector"
