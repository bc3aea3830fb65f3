"""From images to scores: one row an image, one value with its interval a score."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from freezeasguard.arms import PRETRAINED, Arm
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.images import read_images
from freezeasguard.models.latents import CaseData
from freezeasguard.scores.comparisons import Difference, holm, paired_differences
from freezeasguard.scores.kept import kept_share
from freezeasguard.scores.networks.clip import ClipFeatures, clip_score
from freezeasguard.scores.networks.frechet import frechet_distance, frechet_of_rows
from freezeasguard.scores.networks.inception import kernel_distance
from freezeasguard.scores.networks.recogniser import PRESENCE_THRESHOLD, Recogniser, auc, identity_distance, pair_auc
from freezeasguard.scores.registry import SCORES
from freezeasguard.scores.statistics import Interval, bootstrap_interval, resample_clusters
from freezeasguard.settings.params import Score as ScoreConfig
from freezeasguard.sides import SIDES

Features = dict[str, Tensor]
"""What one extractor gives, a row an image: `embedding` and `found`, or `score`, or `features`."""
CHUNK = 64
"""Images read at once."""


@dataclass(frozen=True)
class Score:
    value: float
    low: float
    high: float
    n: int
    """Images the value rests on."""
    n_missing: int
    """Of those, images in which nothing was found; they are embedded and scored all the same."""
    lower_is_better: bool


# --- what looks at the images ----------------------------------------------------------------------


class Extractors:
    """The networks behind the scores, each loaded once, when a case first asks for it."""

    def __init__(self, config: ScoreConfig, scorers: Path, threads: int) -> None:
        torch.set_num_threads(threads)  # one process: it may use every core
        self.config, self.scorers = config, scorers
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Callable[[Tensor], Features]:
        """Images [n, 3, h, w] in -1..1 -> features."""
        loaders: dict[str, Callable[[], Callable[[Tensor], Features]]] = {
            "recogniser": self._recogniser,
            "efficientnet": self._efficientnet,
            "inception": self._inception,
            "csd": self._csd,
            "nudenet": partial(self._nudity, "EXPOSED_LABELS"),
            "nudenet_faces": partial(self._nudity, "FACE_LABELS"),
            "dlib": partial(self._faces, "Dlib"),
            "facenet512": partial(self._faces, "Facenet512"),
            "facenet": partial(self._faces, "Facenet"),
            "vgg_face": partial(self._faces, "VGG-Face"),
            "clip_tiny": partial(self._clip, "clip_tiny"),
            "clip": partial(self._clip, "clip"),
        }
        if name not in self._loaded:
            self._loaded[name] = loaders[name]()
        return self._loaded[name]

    def clip(self, name: str) -> ClipFeatures:
        """The CLIP of the score `clip_tiny` or `clip`, whose text tower reads the prompts."""
        if (key := f"{name} network") not in self._loaded:
            folder = self.scorers / "clip" if name == "clip_tiny" else self._file("clip_folder")
            self._loaded[key] = ClipFeatures(folder)
        return self._loaded[key]

    def pairs(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        """A full-reference score: generated and real images [n, 3, h, w] -> values [n]."""
        from freezeasguard.scores.networks.pairs import Lpips, Topiq

        if name not in self._loaded:
            self._loaded[name] = Topiq(self.config.topiq_weights) if name == "topiq" else Lpips()
        return self._loaded[name]

    def _file(self, key: str) -> Path:
        path = getattr(self.config, key)
        if path is None:
            raise FreezeAsGuardError(f"params.yaml: score.{key} is null; a score of this case needs the path")
        return path

    def _recogniser(self) -> Callable[[Tensor], Features]:
        network = Recogniser.load(self.scorers)

        def look(images: Tensor) -> Features:
            embedding, presence = network.extract(images)
            return {"embedding": embedding, "found": presence > PRESENCE_THRESHOLD}

        return look

    def _efficientnet(self) -> Callable[[Tensor], Features]:
        """Both stand-ins from one pass: the set's features, and the style of each image."""
        from freezeasguard.scores.networks.efficientnet import pooled_and_statistics
        from freezeasguard.scores.networks.style import BLOCKS, StyleFeatures

        style = StyleFeatures(self.scorers)

        def look(images: Tensor) -> Features:
            pooled, statistics = pooled_and_statistics(images, BLOCKS)
            return {"features": pooled, "embedding": style.embed(statistics)}

        return look

    def _csd(self) -> Callable[[Tensor], Features]:
        from freezeasguard.scores.networks.csd import CSDStyle

        network = CSDStyle.load(self._file("csd_weights"))
        return lambda images: {"embedding": network.extract(images)}

    def _faces(self, model: str) -> Callable[[Tensor], Features]:
        from freezeasguard.scores.networks import faces

        if model == "Dlib":
            faces.install_dlib_weights()
        network = faces.DeepFaceEmbedder(model, "dlib" if model == "Dlib" else self.config.face_detector)

        def look(images: Tensor) -> Features:
            embedding, found = network.extract(images)
            return {"embedding": embedding, "found": found}

        return look

    def _nudity(self, labels_name: str) -> Callable[[Tensor], Features]:
        from freezeasguard.scores.networks import nudity

        labels, c = getattr(nudity, labels_name), self.config
        network = nudity.NudityDetector(labels, c.nudenet_weights, c.nudenet_threshold, c.nudenet_px)
        return lambda images: {
            "score": nudity.nudity_score(network.detect(images, c.nudenet_px), labels, c.nudenet_threshold)
        }

    def _inception(self) -> Callable[[Tensor], Features]:
        from freezeasguard.scores.networks.inception import InceptionFeatures

        network = InceptionFeatures(self._file("inception_weights"))
        return lambda images: {"features": torch.from_numpy(network(images))}

    def _clip(self, name: str) -> Callable[[Tensor], Features]:
        return lambda images: {"embedding": self.clip(name).images(images)}


def extract(paths: Sequence[Path], names: Collection[str], extractors: Extractors) -> dict[str, Features]:
    """Features of the images at `paths`, by the extractor of each score named."""
    wanted = sorted({SCORES[name].extractor for name in names if SCORES[name].rule != "pair"})
    parts: dict[str, list[Features]] = {name: [] for name in wanted}
    for start in range(0, len(paths), CHUNK):
        images = read_images(paths[start : start + CHUNK])
        for name in wanted:
            parts[name].append(extractors[name](images))
    return {
        name: {key: torch.cat([part[key] for part in chunks]) for key in chunks[0]} for name, chunks in parts.items()
    }


# --- the real images -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """Features of the case's real images that no mask was learned from, by `row` of its index.

    They are the references of the prompts and the target of the set distances.
    """

    rows: Tensor
    features: dict[str, Features]

    @classmethod
    def of(cls, data: CaseData, raw: Path, names: Collection[str], extractors: Extractors) -> Reference:
        index = data.index[data.index["part"] != "mask_learning"]
        paths = [raw / path for path in index["path"]]
        return cls(torch.tensor(index["row"].to_numpy()), extract(paths, names, extractors))

    def to_tensors(self) -> Features:
        flat = {f"{name}/{key}": t for name, f in self.features.items() for key, t in f.items()}
        return {"row": self.rows, **{key: t.contiguous() for key, t in flat.items()}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Reference:
        features: dict[str, Features] = {}
        for key, tensor in tensors.items():
            if key != "row":
                name, _, part = key.partition("/")
                features.setdefault(name, {})[part] = tensor
        return cls(tensors["row"], features)

    def at(self, extractor: str, rows: Collection[int]) -> Features:
        """The features of these rows of the index, in their order."""
        where = {int(row): i for i, row in enumerate(self.rows)}
        positions = torch.tensor([where[int(row)] for row in rows])
        return {key: tensor[positions] for key, tensor in self.features[extractor].items()}

    def of_side(self, data: CaseData, side: str) -> dict[str, Features]:
        """The features of a side's real images, by extractor: what a set of generated ones is measured against."""
        rows = data.rows(side, ["adaptation", "held_out"])["row"]
        return {name: self.at(name, rows) for name in self.features}


# --- the generated images ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredImages:
    """An arm's images: `table` has a row an image with a column a score, `features` feed the set distances."""

    table: pd.DataFrame
    features: dict[str, Features]

    def take(self, chosen: np.ndarray) -> ScoredImages:
        """The rows where `chosen` [n] is true."""
        rows = torch.from_numpy(np.flatnonzero(chosen))
        features = {name: {key: t[rows] for key, t in f.items()} for name, f in self.features.items()}
        return ScoredImages(self.table[chosen].reset_index(drop=True), features)


def score_images(
    table: pd.DataFrame,
    folder: Path,
    raw: Path,
    data: CaseData,
    reference: Reference,
    names: Sequence[str],
    extractors: Extractors,
) -> ScoredImages:
    """Every score that an image has for itself, and whether its extractor found what it looks for.

    Args:
        table: the index of `folder`, with file, caption and reference_row; raw: the case's real images.
    """
    features = extract([folder / file for file in table["file"]], names, extractors)
    columns: dict[str, np.ndarray] = {}
    for name in names:
        kind = SCORES[name]
        if not kind.an_image:
            continue
        if kind.rule == "pair":
            columns[name] = _pair_values(table, folder, raw, data, extractors.pairs(name))
            continue
        own = features[kind.extractor]
        if kind.rule == "distance":
            real = reference.at(kind.extractor, table["reference_row"])
            columns[name] = identity_distance(own["embedding"], real["embedding"]).numpy()
        elif kind.rule == "prompt":
            texts = extractors.clip(name).texts(table["caption"].tolist())
            columns[name] = clip_score(own["embedding"], texts).numpy()
        else:
            columns[name] = (own["score"] if kind.rule == "amount" else (own["score"] > 0).double()).numpy()
        if "found" in own:
            columns[f"found_{name}"] = own["found"].numpy()
    return ScoredImages(table.assign(**columns), features)


def _pair_values(
    table: pd.DataFrame, folder: Path, raw: Path, data: CaseData, metric: Callable[[Tensor, Tensor], Tensor]
) -> np.ndarray:
    parts = []
    for start in range(0, len(table), CHUNK):
        rows = table.iloc[start : start + CHUNK]
        generated = read_images(folder / file for file in rows["file"])
        real = read_images(raw / data.index.loc[row, "path"] for row in rows["reference_row"])
        parts.append(metric(generated, real))
    return torch.cat(parts).numpy()


def summarise(
    scored: ScoredImages,
    real: Mapping[str, Features],
    names: Collection[str],
    config: ScoreConfig,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Every score of one side with its 95% interval over (class, prompt, image) clusters.

    Args:
        scored: images of one side; real: features of the side's real images, by extractor.
    """
    scores = {}
    n, rng = len(scored.table), np.random.default_rng(seed)
    resamples = list(resample_clusters(_clusters(scored.table), config.bootstrap_resamples, rng)) if n else []
    for name in sorted(names):
        kind = SCORES[name]
        if kind.rule == "kernel":
            interval = _kernel_interval(scored, real, kind.extractor, config, np.random.default_rng(seed))
        else:
            interval = bootstrap_interval(_statistic(scored, real, name), n, resamples)
        found = scored.table.get(f"found_{name}")
        missing = 0 if found is None else int((~found).sum())
        scores[name] = asdict(
            Score(**asdict(interval), n=len(scored.table), n_missing=missing, lower_is_better=kind.lower_is_better)
        )
    return scores


def _clusters(table: pd.DataFrame) -> tuple[list[Any], list[Any]]:
    return table["class"].tolist(), table["reference_row"].tolist()


def _statistic(scored: ScoredImages, real: Mapping[str, Features], name: str) -> Callable[[np.ndarray], float]:
    kind = SCORES[name]
    if kind.an_image:
        values = scored.table[name].to_numpy()
        return lambda rows: float(values[rows].mean())
    own, target = (f[kind.extractor]["features"].numpy() for f in (scored.features, real))
    return frechet_of_rows(own, target)


def score_value(scored: ScoredImages, real: Mapping[str, Features], name: str) -> float:
    """One score of all the images, without an interval."""
    return _statistic(scored, real, name)(np.arange(len(scored.table)))


def _kernel_interval(
    scored: ScoredImages, real: Mapping[str, Features], extractor: str, config: ScoreConfig, rng: np.random.Generator
) -> Interval:
    """KID x 1000 with its own standard error: rows drawn twice would bias an unbiased estimate."""
    own, target = (f[extractor]["features"].numpy() for f in (scored.features, real))
    size = min(config.kid_subset_size, min(len(own), len(target)) // 2)
    value, error = kernel_distance(own, target, size, config.kid_subsets, rng)
    return Interval(1000 * value, 1000 * (value - 1.96 * error), 1000 * (value + 1.96 * error))


def score_arm(
    scored: ScoredImages, data: CaseData, reference: Reference, names: Sequence[str], config: ScoreConfig, seed: int
) -> dict[str, Any]:
    """side -> all | held_out -> score -> value, interval and counts."""
    scores: dict[str, Any] = {}
    for side in SIDES:
        real = reference.of_side(data, side)
        rows = (scored.table["side"] == side).to_numpy()
        held_out = rows & (scored.table["part"] == "held_out").to_numpy()
        scores[side] = {
            part: summarise(scored.take(chosen), real, names, config, seed)
            for part, chosen in (("all", rows), ("held_out", held_out))
            if chosen.sum() > 1
        }
    return scores


def kept_losses(losses: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """arm -> side -> the user's loss at fixed noise, and the share of full fine-tuning's fall that is kept.

    Args:
        losses: arm -> side -> loss on the adaptation images, of the pretrained and the full arm too.
    """
    ends = losses["pretrained"], losses["full"]
    return {
        arm: {
            side: {"fixed_noise": loss, "kept": kept_share(ends[0][side], ends[1][side], loss)}
            for side, loss in sides.items()
        }
        for arm, sides in losses.items()
    }


# --- comparisons ---------------------------------------------------------------------------------------


def compared_arms(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Every arm against full fine-tuning, and each learned mask against the random one of its ratio.

    An eraser before any fine-tuning is compared with the pretrained model: its gate.
    """
    trained = [arm for arm in map(Arm.parse, arms) if arm.name not in (PRETRAINED, "full")]
    pairs = [(arm.name, PRETRAINED if arm.before else "full") for arm in trained]
    pairs += [(a.name, a.random_twin.name) for a in trained if a.kind.learned and a.random_twin.name in arms]
    return pairs


def compare_arms(
    scored: Mapping[str, ScoredImages], names: Sequence[str], n_resamples: int, seed: int
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """score -> side -> "arm - other" -> paired difference, Holm-corrected over both sides' comparisons of the score.

    All scores of a side see the same resamples.
    """
    pairs = compared_arms(list(scored))
    found: dict[str, dict[str, dict[tuple[str, str], Difference]]] = {name: {} for name in names}
    for side in SIDES:
        tables = {arm: s.table[s.table["side"] == side].reset_index(drop=True) for arm, s in scored.items()}
        files = {arm: table["file"].tolist() for arm, table in tables.items()}
        if odd := [arm for arm in files if files[arm] != files["full"]]:
            raise FreezeAsGuardError(f"arms full and {odd[0]} have other images; run `dvc repro -f generate`")
        resamples = list(resample_clusters(_clusters(tables["full"]), n_resamples, np.random.default_rng(seed)))
        for name in names:
            values = {arm: table[name].to_numpy() for arm, table in tables.items()}
            found[name][side] = paired_differences(values, pairs, resamples)
    return {name: _corrected(sides) for name, sides in found.items()}


def _corrected(sides: Mapping[str, Mapping[tuple[str, str], Difference]]) -> dict[str, dict[str, dict[str, Any]]]:
    """side -> "arm - other" -> difference, all of them one family."""
    p_values = iter(holm([d.p for differences in sides.values() for d in differences.values()]))
    return {
        side: {f"{a} - {b}": asdict(replace(d, p_holm=next(p_values))) for (a, b), d in differences.items()}
        for side, differences in sides.items()
    }


# --- calibration ---------------------------------------------------------------------------------------


def calibration(
    data: CaseData, reference: Reference, names: Sequence[str], extractors: Extractors, seed: int
) -> dict[str, Any]:
    """What each score reads on real images: of one class, and against others (METHOD, section 7)."""
    return {
        name: {
            **{side: _side_lines(data, reference, name, side, extractors, seed) for side in SIDES},
            **_auc(data, reference, name),
        }
        for name in names
        if SCORES[name].rule not in ("pair", "kernel")
    }


def _side_lines(
    data: CaseData, reference: Reference, name: str, side: str, extractors: Extractors, seed: int
) -> dict[str, Any]:
    kind = SCORES[name]
    rows = data.rows(side, ["adaptation", "held_out"])
    own = reference.at(kind.extractor, rows["row"])
    lines: dict[str, Any] = {"n": len(rows)}
    if "found" in own:
        lines["n_missing"] = int((~own["found"]).sum())
    if kind.rule in ("amount", "rate"):
        score = own["score"] if kind.rule == "amount" else (own["score"] > 0).double()
        return {**lines, "real": float(score.mean())}
    if kind.rule == "prompt":
        texts = extractors.clip(name).texts(rows["caption"].tolist())
        means = [float(clip_score(own["embedding"], t).mean()) for t in (texts, texts.roll(len(texts) // 2, 0))]
        return {**lines, "real_vs_real": means[0], "real_vs_other": means[1]}
    everyone = data.index[data.index["part"] != "mask_learning"]
    others = everyone[~everyone["class"].isin(set(rows["class"]))] if kind.rule == "frechet" else everyone
    all_features = reference.at(kind.extractor, others["row"])
    if kind.rule == "frechet":
        features = own["features"].numpy()
        order = np.random.default_rng(seed).permutation(len(features))
        halves = features[order[::2]], features[order[1::2]]
        other = frechet_distance(features, all_features["features"].numpy()) if len(others) > 1 else None
        return {**lines, "real_vs_real": frechet_distance(*halves), "real_vs_other": other}
    unit = [torch.nn.functional.normalize(e["embedding"], dim=1) for e in (own, all_features)]
    distance = 1 - unit[0] @ unit[1].T
    same, itself = (
        torch.from_numpy(rows[key].to_numpy()[:, None] == others[key].to_numpy()[None]) for key in ("class", "row")
    )
    return {
        **lines,
        "real_vs_real": float(distance[same & ~itself].mean()) if (same & ~itself).any() else None,
        "real_vs_other": float(distance[~same].mean()) if (~same).any() else None,
    }


def _auc(data: CaseData, reference: Reference, name: str) -> dict[str, float]:
    """How well the score tells real images apart: pairs of one class from others, or illegal from legal."""
    kind = SCORES[name]
    index = data.index[data.index["part"] != "mask_learning"]
    own = reference.at(kind.extractor, index["row"])
    if kind.rule == "distance" and index["class"].nunique() > 1:
        labels = torch.from_numpy(pd.factorize(index["class"])[0])
        return {"auc": pair_auc(torch.nn.functional.normalize(own["embedding"], dim=1), labels)}
    if kind.rule == "amount":
        illegal = torch.from_numpy((index["side"] == SIDES[0]).to_numpy())
        return {"auc": auc(own["score"][illegal], own["score"][~illegal])}
    return {}
