"""Which images are kept, and how they are cut (paper, App. C). Every refusal has its reason."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.settings.params import Clean

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""All that foreign bytes are decoded as: decoders of other formats crash, or call other programs (EPS: Ghostscript)."""


def decode(content: bytes, max_pixels: int) -> tuple[Image.Image | None, str]:
    """An upright RGB image, or None and the reason: unreadable, truncated, too large, or of a refused format."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            if opened.width * opened.height > max_pixels:
                return None, f"too large: {opened.width}x{opened.height} pixels"
            return ImageOps.exif_transpose(opened).convert("RGB"), "ok"
    except UnidentifiedImageError:
        refused = _refused_format(content[:16])
        return None, f"refused: format {refused}" if refused else "unreadable: no image"
    except Exception as error:  # decoders of broken images have no common error
        reason = "truncated" if "truncated" in str(error) else type(error).__name__
        return None, f"unreadable: {reason}"


def _refused_format(start: bytes) -> str | None:
    """The name of a format that Pillow knows by its first bytes; nothing is decoded."""
    Image.init()
    for name, (_, accepts) in Image.OPEN.items():
        with suppress(Exception):  # as `Image.open`: not every test is made for few bytes
            if name not in FORMATS and accepts is not None and accepts(start):
                return name
    return None


class FaceDetector:
    """Boxes (x, y, width, height) of the faces in an image, by OpenCV."""

    def __init__(self, config: Clean) -> None:
        import cv2

        self.kind = config.face_detector
        if self.kind == "haar":
            path = Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml"
            self._cascade = cv2.CascadeClassifier(str(path))
            if self._cascade.empty():
                raise FreezeAsGuardError(f"OpenCV has no {path}; pip install opencv-python-headless==4.14.0.94")
        else:
            if config.face_model is None or not config.face_model.is_file():
                raise FreezeAsGuardError(
                    f"clean.face_model is {config.face_model}; YuNet needs its ONNX file: fetch "
                    "face_detection_yunet_2023mar.onnx from github.com/opencv/opencv_zoo and name it there"
                )
            self._yunet = cv2.FaceDetectorYN.create(str(config.face_model), "", (320, 320))

    def __call__(self, image: Image.Image) -> list[tuple[int, int, int, int]]:
        import cv2

        pixels = np.asarray(image)
        if self.kind == "haar":
            gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
            smallest = max(20, min(image.size) // 10)
            found: Any = self._cascade.detectMultiScale(gray, 1.1, 6, minSize=(smallest, smallest))
        else:
            self._yunet.setInputSize(image.size)
            found = self._yunet.detect(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]
            found = [] if found is None else found[:, :4]
        return [(int(x), int(y), int(w), int(h)) for x, y, w, h in found]


def square(image: Image.Image, size_px: int, face: tuple[int, int, int, int] | None = None) -> Image.Image:
    """The largest square, about the middle of the image or of a face, scaled to `size_px`."""
    side = min(image.size)
    centre = (image.width / 2, image.height / 2)
    if face is not None:
        x, y, width, height = face
        centre = (x + width / 2, y + height / 2)
    left, top = (min(max(0, round(c - side / 2)), extent - side) for c, extent in zip(centre, image.size, strict=True))
    cut = image.crop((left, top, left + side, top + side))
    return cut if cut.size == (size_px, size_px) else cut.resize((size_px, size_px), Image.Resampling.LANCZOS)


class Cleaner:
    """Applies a domain's `clean` block to one image after another."""

    def __init__(self, config: Clean, size_px: int) -> None:
        self.config, self.size_px = config, size_px
        wants_faces = config.faces is not None or config.crop == "face"
        self._faces = FaceDetector(config) if wants_faces else None

    def __call__(self, image: Image.Image) -> tuple[Image.Image | None, str]:
        """The square image, or None and the reason."""
        if min(image.size) < self.config.min_side_px:
            return None, f"small: {image.width}x{image.height} pixels"
        faces = self._faces(image) if self._faces else []
        if self.config.faces is not None and len(faces) != self.config.faces:
            return None, f"faces: {len(faces)} instead of {self.config.faces}"
        largest = max(faces, key=lambda box: box[2] * box[3], default=None)
        return square(image, self.size_px, largest if self.config.crop == "face" else None), "ok"


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """pHash of imagehash: 64 bits, near for images that look alike."""
    import imagehash

    return imagehash.phash(image).hash.flatten()


def near_duplicates(hashes: Sequence[np.ndarray], max_bits: int) -> list[int | None]:
    """For each image the index of the earlier one that it repeats, or None; the first of a kind stays.

    Brute force over packed bits: 10,000 images take seconds.
    """
    if not len(hashes):
        return []
    packed = np.packbits(np.stack(hashes), axis=1)
    kept: list[int] = []
    repeats: list[int | None] = []
    for index, bits in enumerate(packed):
        if kept:
            distances = np.bitwise_count(packed[kept] ^ bits).sum(1)
            nearest = int(distances.argmin())
            if distances[nearest] <= max_bits:
                repeats.append(kept[nearest])
                continue
        kept.append(index)
        repeats.append(None)
    return repeats
