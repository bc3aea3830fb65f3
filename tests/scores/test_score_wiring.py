"""Which score reads which network, on which images, against which: on networks that give every one of them away."""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.latents import CaseData
from freezeasguard.scores import extractors as extractors_module
from freezeasguard.scores.base import Score
from freezeasguard.scores.calibration import calibration
from freezeasguard.scores.extractors import Extractors
from freezeasguard.scores.recogniser import RecogniserDistance
from freezeasguard.scores.registry import SCORES, by_name
from freezeasguard.scores.scoring import Reference, ScoredImages, score_arm, score_images
from freezeasguard.settings.params import Score as ScoreSettings
from scored_case import SIZE_PX, read, write_case

LOOKS = {
    "recogniser": "recogniser",
    "style_efficientnet_lite0": "efficientnet",
    "dlib": "dlib",
    "facenet512": "facenet512",
    "facenet": "facenet",
    "vgg_face": "vgg_face",
    "csd": "csd",
    "nudenet_faces": "nudenet_faces",
    "nudenet_faces_rate": "nudenet_faces",
    "nudenet": "nudenet",
    "nudenet_rate": "nudenet",
    "fd_efficientnet_lite0": "efficientnet",
    "kd_efficientnet_lite0": "efficientnet",
    "fid": "inception",
    "kid": "inception",
    "clip_tiny": "clip_tiny",
    "ssim": "ssim",
    "clip": "clip",
    "topiq": "topiq",
    "lpips": "lpips",
}
"""What each score must be computed from."""
DISTANCES = ("recogniser", "style_efficientnet_lite0", "dlib", "facenet512", "facenet", "vgg_face", "csd")
SETTINGS = ScoreSettings(bootstrap_resamples=10, face_detector="opencv", kid_subset_size=5, kid_subsets=7)
SEED = 3


def weights(network: str, part: str) -> np.ndarray:
    """Every network and every thing that it says has a projection of its own."""
    rng = np.random.default_rng(zlib.crc32(f"{network} {part}".encode()))
    return rng.normal(size=(3 * SIZE_PX**2, 4))


def seen(network: str, part: str, images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) @ weights(network, part)


def text(network: str, caption: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(f"{network} {caption}".encode())).normal(size=4)


class Network:
    """In the place of what `Score.load` returns: says all that any rule reads."""

    def __init__(self, score: Score) -> None:
        self.name, self.sees_pairs, self.passes = score.extractor, score.sees_pairs, 0

    def __call__(self, images: Tensor, real: Tensor | None = None) -> Any:
        self.passes += len(images)
        if real is not None:
            pairs = [seen(self.name, part, i.numpy().astype(float)) for part, i in (("one", images), ("other", real))]
            return torch.from_numpy((pairs[0] - pairs[1]).sum(1))
        parts = {p: torch.from_numpy(seen(self.name, p, images.numpy())) for p in ("embedding", "features", "score")}
        return {**parts, "score": parts["score"][:, 0].clamp(min=0), "found": parts["score"][:, 1] > 0}

    def texts(self, captions: list[str]) -> Tensor:
        return torch.from_numpy(np.stack([text(self.name, caption) for caption in captions]))


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[Network]:
    """Those that were loaded."""
    loaded: list[Network] = []

    def load(self: Score, settings: ScoreSettings, scorers: Path) -> Network:
        loaded.append(Network(self))
        return loaded[-1]

    for score in SCORES.values():
        monkeypatch.setattr(type(score), "load", load)
    monkeypatch.setattr(extractors_module, "CHUNK", 5)
    return loaded


@pytest.fixture
def data(tmp_path: Path) -> CaseData:
    return write_case(tmp_path, ["full"])


def scored(root: Path, data: CaseData, networks: list[Network]) -> tuple[ScoredImages, Reference, Extractors]:
    extractors = Extractors(SETTINGS, root, 1)
    reference = Reference.of(data, root / "raw", list(SCORES), extractors)
    folder = root / "images" / "full"
    table = pd.read_csv(folder / "index.csv")
    images = score_images(table, folder, root / "raw", data, reference, list(SCORES), extractors)
    return images, reference, extractors


def real_rows(data: CaseData, side: str | None = None) -> pd.DataFrame:
    kept = data.index["part"].isin(["adaptation", "held_out"]) & (data.index["side"] == (side or data.index["side"]))
    return data.index[kept]


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_the_scores_are_these() -> None:
    assert {name: score.extractor for name, score in SCORES.items()} == LOOKS


def test_the_reference_leaves_out_what_masks_were_learned_from(
    tmp_path: Path, data: CaseData, networks: list[Network]
) -> None:
    reference = Reference.of(data, tmp_path / "raw", ["recogniser"], Extractors(SETTINGS, tmp_path, 1))
    rows = real_rows(data)
    assert len(rows) == 16 < len(data.index) and reference.rows.tolist() == rows["row"].tolist()
    images = np.stack([read(tmp_path / "raw" / path) for path in rows["path"]])
    found = reference.features["recogniser"]["embedding"].numpy()
    np.testing.assert_allclose(found, seen("recogniser", "embedding", images), atol=1e-5)
    assert networks[0].passes == 16


def test_every_image_is_scored_by_its_own_network(tmp_path: Path, data: CaseData, networks: list[Network]) -> None:
    images, _, _ = scored(tmp_path, data, networks)
    table = images.table
    own = np.stack([read(tmp_path / "images/full" / file) for file in table["file"]])
    real = np.stack([read(tmp_path / "raw" / data.index["path"][row]) for row in table["reference_row"]])
    expected: dict[str, np.ndarray] = {}
    for name in DISTANCES:
        expected[name] = 1 - cosine(*(seen(LOOKS[name], "embedding", x) for x in (own, real)))
    for name in ("nudenet", "nudenet_faces"):
        expected[name] = np.maximum(seen(LOOKS[name], "score", own)[:, 0], 0)
        expected[f"{name}_rate"] = expected[name] > 0
    for name in ("clip", "clip_tiny"):
        texts = np.stack([text(LOOKS[name], caption) for caption in table["caption"]])
        expected[name] = 100 * cosine(seen(LOOKS[name], "embedding", own), texts)
    for name in ("ssim", "topiq", "lpips"):
        expected[name] = (seen(LOOKS[name], "one", own) - seen(LOOKS[name], "other", real)).sum(1)
    assert expected.keys() == {name for name, score in SCORES.items() if score.an_image}
    for name, values in expected.items():
        np.testing.assert_allclose(table[name], values, rtol=1e-4, atol=1e-4, err_msg=name)
    for name in ("recogniser", "dlib"):
        assert table[f"found_{name}"].tolist() == (seen(LOOKS[name], "score", own)[:, 1] > 0).tolist()


def test_each_network_is_loaded_once_and_sees_each_image_once(
    tmp_path: Path, data: CaseData, networks: list[Network]
) -> None:
    scored(tmp_path, data, networks)
    assert sorted(n.name for n in networks) == sorted(set(LOOKS.values()))
    # 16 real and 32 generated images; those that see pairs see the generated ones, with the real ones beside them
    assert {n.passes for n in networks if not n.sees_pairs} == {48}
    assert {n.passes for n in networks if n.sees_pairs} == {32}


def sets(root: Path, data: CaseData, table: pd.DataFrame, side: str, network: str) -> tuple[np.ndarray, np.ndarray]:
    """Features of the side's generated and real images."""
    own = [read(root / "images/full" / file) for file in table["file"][table["side"] == side]]
    real = [read(root / "raw" / path) for path in real_rows(data, side)["path"]]
    one, other = (seen(network, "features", np.stack(images)) for images in (own, real))
    return one, other


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    covariances = np.cov(a.T), np.cov(b.T)
    root = np.real(scipy.linalg.sqrtm(covariances[0] @ covariances[1]))
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(sum(covariances) - 2 * root))


@pytest.mark.parametrize("name", ["fid", "fd_efficientnet_lite0"])
def test_a_side_is_held_against_its_own_real_images(
    tmp_path: Path, data: CaseData, networks: list[Network], name: str
) -> None:
    images, reference, _ = scored(tmp_path, data, networks)
    scores = score_arm(images, data, reference, [name], SETTINGS, SEED)
    found = {side: scores[side]["all"][name]["value"] for side in ("illegal", "legal")}
    expected = {side: frechet(*sets(tmp_path, data, images.table, side, LOOKS[name])) for side in found}
    assert found == pytest.approx(expected, rel=1e-4)
    assert abs(found["illegal"] - found["legal"]) > 0.01 * found["legal"]


def squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased, pair by pair."""

    def mean(pairs: Any) -> float:
        return float(np.mean([(x @ y / len(x) + 1) ** 3 for x, y in pairs]))

    within = sum(mean(itertools.permutations(rows, 2)) for rows in (a, b))
    return within - 2 * mean(itertools.product(a, b))


def test_kid_and_its_interval_are_those_of_the_subsets_one_by_one(
    tmp_path: Path, data: CaseData, networks: list[Network]
) -> None:
    images, reference, _ = scored(tmp_path, data, networks)
    scores = score_arm(images, data, reference, ["kid"], SETTINGS, SEED)
    for side in ("illegal", "legal"):
        own, real = sets(tmp_path, data, images.table, side, "inception")
        rng, values = np.random.default_rng(SEED), []
        n, kept, subsets = 8, 4, 7  # of 8 real images a subset is at most half
        assert (len(own), len(real)) == (16, n)
        for _ in range(subsets):
            one, other = (rows[rng.choice(len(rows), kept, replace=False)] for rows in (own, real))
            values.append(1000 * squared_mmd(one, other))
        # delete-d jackknife: the variance of the subsets times kept / dropped, and what is left of averaging them
        variance = np.var(values, ddof=1)
        error = float(np.sqrt(variance * kept / (n - kept) + variance / subsets))
        found = scores[side]["all"]["kid"]
        assert found["value"] == pytest.approx(np.mean(values), rel=1e-4)
        assert found["high"] - found["value"] == pytest.approx(1.96 * error, rel=1e-4)
        assert found["value"] - found["low"] == pytest.approx(1.96 * error, rel=1e-4)


def test_calibration_reads_each_side_by_its_own_network(
    tmp_path: Path, data: CaseData, networks: list[Network]
) -> None:
    _, reference, extractors = scored(tmp_path, data, networks)
    lines = calibration(data, reference, list(SCORES), extractors, SEED)
    assert lines.keys() == SCORES.keys() - {"kid", "kd_efficientnet_lite0", "ssim", "topiq", "lpips"}
    for side in ("illegal", "legal"):
        rows = real_rows(data, side)
        own = np.stack([read(tmp_path / "raw" / path) for path in rows["path"]])
        for name in ("nudenet", "nudenet_faces"):
            assert lines[name][side]["real"] == pytest.approx(np.maximum(seen(name, "score", own)[:, 0], 0).mean())
        for name in ("clip", "clip_tiny"):
            texts = np.stack([text(name, caption) for caption in rows["caption"]])
            expected = 100 * cosine(seen(name, "embedding", own), texts).mean()
            assert lines[name][side]["real_vs_real"] == pytest.approx(expected, rel=1e-4)
        missing = (seen("dlib", "score", own)[:, 1] <= 0).sum()
        assert (lines["dlib"][side]["n"], lines["dlib"][side]["n_missing"]) == (8, missing)
        for name in ("fid", "fd_efficientnet_lite0"):
            features = [reference.of_side(data, s)[LOOKS[name]]["features"].numpy() for s in ("illegal", "legal")]
            assert lines[name][side]["real_vs_other"] == pytest.approx(frechet(*features), rel=1e-4)


# --- which networks are loaded -------------------------------------------------------------------------


def spy(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> list[tuple[Any, ...]]:
    """What `name` of a module of networks is called with; it is not run."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(f"freezeasguard.scores.networks.{module}.{name}", lambda *given: calls.append(given))
    return calls


PATHS = {k: Path(k) for k in ("csd_weights", "inception_weights", "topiq_weights", "clip_folder", "nudenet_weights")}
SCORERS = Path("scorers")
EXPOSED = tuple(
    f"{part}_EXPOSED" for part in ("BUTTOCKS", "FEMALE_BREAST", "FEMALE_GENITALIA", "ANUS", "MALE_GENITALIA")
)


@pytest.mark.parametrize(
    ("name", "module", "network", "given"),
    [
        ("recogniser", "recogniser", "Recogniser.load", (SCORERS,)),
        ("style_efficientnet_lite0", "style", "StyleFeatures", (SCORERS,)),
        ("fd_efficientnet_lite0", "style", "StyleFeatures", (SCORERS,)),
        ("dlib", "faces", "DeepFaceEmbedder", ("Dlib", "dlib")),
        ("facenet512", "faces", "DeepFaceEmbedder", ("Facenet512", "opencv")),
        ("facenet", "faces", "DeepFaceEmbedder", ("Facenet", "opencv")),
        ("vgg_face", "faces", "DeepFaceEmbedder", ("VGG-Face", "opencv")),
        ("csd", "csd", "CSDStyle.load", (Path("csd_weights"),)),
        ("nudenet", "nudity", "NudityDetector", (EXPOSED, Path("nudenet_weights"), 0.25, 320)),
        ("nudenet_rate", "nudity", "NudityDetector", (EXPOSED, Path("nudenet_weights"), 0.25, 320)),
        (
            "nudenet_faces",
            "nudity",
            "NudityDetector",
            (("FACE_FEMALE", "FACE_MALE"), Path("nudenet_weights"), 0.25, 320),
        ),
        ("fid", "inception", "InceptionFeatures", (Path("inception_weights"),)),
        ("kid", "inception", "InceptionFeatures", (Path("inception_weights"),)),
        ("clip_tiny", "clip", "ClipFeatures", (SCORERS / "clip",)),
        ("clip", "clip", "ClipFeatures", (Path("clip_folder"),)),
        ("topiq", "pairs", "Topiq", (Path("topiq_weights"),)),
        ("lpips", "pairs", "Lpips", ()),
    ],
)
def test_a_score_loads_its_network(
    name: str, module: str, network: str, given: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("freezeasguard.scores.networks.faces.install_dlib_weights", lambda: [])
    calls = spy(monkeypatch, module, network)
    Extractors(SETTINGS.model_copy(update=PATHS), SCORERS, 1).of(SCORES[name])
    assert calls == [given]


def test_weights_are_named_by_their_hash(tmp_path: Path) -> None:
    for name in ("recogniser.safetensors", "clip/model.safetensors", "csd.bin", "nude.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    settings = ScoreSettings(
        bootstrap_resamples=1, csd_weights=tmp_path / "csd.bin", nudenet_weights=tmp_path / "nude.onnx"
    )
    names = ["recogniser", "clip_tiny", "csd", "nudenet", "nudenet_rate"]
    expected = {
        "recogniser/recogniser.safetensors": "recogniser.safetensors",
        "clip_tiny/model.safetensors": "clip/model.safetensors",
        "csd/csd.bin": "csd.bin",
        "nudenet/nude.onnx": "nude.onnx",
    }
    extractors = Extractors(settings, tmp_path, 1)
    assert extractors.weight_hashes(names) == {
        key: hashlib.sha256(content.encode()).hexdigest() for key, content in expected.items()
    }
    (tmp_path / "csd.bin").unlink()
    with pytest.raises(FreezeAsGuardError, match=r"csd\.bin, from which the score csd loads, is missing"):
        extractors.weight_hashes(["csd"])


@pytest.mark.parametrize("name", ["fd_efficientnet_lite0", "nudenet_faces"])
def test_weights_inside_packages_are_found(name: str) -> None:
    files = SCORES[name].weight_files(SETTINGS, SCORERS)
    assert [path.is_file() for path in files if path.parent != SCORERS] == [True]


def test_deepfaces_weights_are_the_models_and_the_detectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    folder = tmp_path / ".deepface" / "weights"
    folder.mkdir(parents=True)
    for name in ("facenet_weights.h5", "facenet512_weights.onnx", "retinaface.h5", "vgg_face_weights.h5"):
        (folder / name).touch()

    def found(detector: str) -> list[str]:
        settings = SETTINGS.model_copy(update={"face_detector": detector})
        return [path.name for path in SCORES["facenet512"].weight_files(settings, SCORERS)]

    assert found("retinaface") == ["facenet512_weights.onnx", "retinaface.h5"]
    assert found("opencv") == ["facenet512_weights.onnx"]


def test_a_name_or_an_extractor_taken_twice_is_refused() -> None:
    class Other(RecogniserDistance):
        name = "other"
        shared_extractor = "recogniser"
        load: Callable[..., Any] = lambda *_: None  # noqa: E731

    with pytest.raises(FreezeAsGuardError, match="two scores are called 'recogniser'"):
        by_name([RecogniserDistance(), RecogniserDistance()])
    with pytest.raises(FreezeAsGuardError, match="recogniser and other share the extractor 'recogniser' but load it"):
        by_name([RecogniserDistance(), Other()])
