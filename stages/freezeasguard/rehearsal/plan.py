"""What a rehearsal makes of a profile's params: the same stages, cases and arms, fabricated files, and least counts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freezeasguard.arms import PRETRAINED
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.params import Params

IMAGES_PER_CLASS = 8
"""Four to learn masks from, two to adapt on, two held out."""
CLASSES = 2
"""Of a side, at most; as many as the users that train one after the other."""
SMALL_PX = 64
"""The least that SD's three halvings in the VAE and three in the UNet leave something of."""
WEIGHTS = "data/weights"
LEAST: dict[str, dict[str, Any]] = {
    "relearn": {"steps": 2, "batch_size": 2, "checkpoint_steps": 1},
    "adapt": {"steps": 2, "batch_size": 2, "checkpoint_steps": None},  # relearn's: 10 GB each, of the same loop
    "imma": {"steps": 2, "batch_size": 2},
    "mask": {"mask_steps": 1, "user_steps": 1, "path_points": 1, "batch_size": 2, "mask_batch_size": 1},
    "generate": {"steps": 2, "batch_size": 4},
    "score": {"bootstrap_resamples": 20, "comparison_resamples": 50, "kid_subset_size": 2, "kid_subsets": 4},
}
"""By block."""
LEAST_OF_METHODS: dict[str, dict[str, Any]] = {
    "anchored": {"rounds": 1, "batch_size": 1, "neutral_images": 1, "neutral_steps": 2},
}
"""By the block of a further method."""
IMAGES_PER_PROMPT = {"kid": 4, "fid": 2}
"""What a score needs of one prompt, a class; the others are content with an image."""


@dataclass
class Plan:
    """What a rehearsal runs, and what it asks the fabricated hub for."""

    params: Params
    """The profile's own, of the cases that are rehearsed."""
    values: dict[str, Any]
    """params.yaml of the rehearsal; it holds up once the files that it names are made."""
    models: dict[str, str] = field(default_factory=dict)
    """Folder name below `hub/models` -> the hub id or name, which says what architecture it has."""
    domains: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Domain -> what its sources give: source, folder or file, classes, pictures, sizes and columns."""
    scores: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What it does not rehearse, or otherwise than the profile has it."""


def rehearsed(values: dict[str, Any], hub: Path, size_px: int | None, few: bool, unavailable: list[str]) -> Plan:
    """The plan of a profile whose params.yaml holds `values`.

    Args:
        hub: the folder where the fabricated files will lie.
        size_px: of all images; None: the profile's own.
        few: one case a model and kind of source, with one arm a method.
        unavailable: scores that cannot run here.
    """
    values = copy.deepcopy(values)
    params = Params.model_validate(values)  # the profile as it is must be valid
    if few:
        _keep_few(values, params)
    params = Params.model_validate(values)
    # Every table names it: of random weights, a figure or a verdict says nothing about the profile's own.
    values["profile"] = f"rehearsal-of-{params.profile}"[:60]  # a Name's most
    plan = Plan(params, values)
    for name, model in params.models.items():
        plan.models[name] = f"{name} {model.repo or model.path}"
        values["models"][name] = {"path": str(hub / "models" / name)}
    for name in params.domains:
        _domain(plan, name, hub, size_px, unavailable)
    for name, case in params.cases.items():
        _case(values["cases"][name], case)
    for block, least in LEAST.items():
        values[block] = {**(values.get(block) or {}), **least}
    for block, own in (values.get("methods") or {}).items():
        own |= LEAST_OF_METHODS.get(block, {})
    values["mask"]["diagnostic_seeds"] = min(params.mask.diagnostic_seeds, 1)
    values["generate"] |= {"prompts_per_side": CLASSES, "held_out_prompts_per_side": CLASSES}
    plan.scores = sorted({score for name in params.domains for score in values["domains"][name]["scores"]})
    values["generate"]["images_per_prompt"] = max(IMAGES_PER_PROMPT.get(score, 1) for score in plan.scores)
    values["score"] |= _weights(plan.scores)
    return plan


def _keep_few(values: dict[str, Any], params: Params) -> None:
    """The cases that have a model or a kind of source first; of these the first has an arm of each method."""
    seen: set[str] = set()
    methods: set[str] = set()
    for name, case in params.cases.items():
        own = {f"model {case.model}", f"source {params.domains[case.domain].source}"}
        if own <= seen:
            del values["cases"][name]
            continue
        first, seen = not seen, seen | own
        arms = [arm for arm in params.arms(name) if arm.name in (PRETRAINED, "full")]
        for arm in sorted(params.arms(name), key=lambda arm: (arm.percent is not None, arm.before)):
            if arm not in arms and (arm.method not in methods if first else arm.name.startswith("freezeasguard")):
                arms.append(arm)
                methods.add(arm.method)
        kept = {arm.name for arm in (arms if first else arms[:3])}
        values["cases"][name]["arms"] = [arm for arm in case.arms if arm in kept]
    used = [params.cases[name] for name in values["cases"]]
    values["models"] = {k: v for k, v in values["models"].items() if k in {case.model for case in used}}
    values["domains"] = {k: v for k, v in values["domains"].items() if k in {case.domain for case in used}}


def _case(values: dict[str, Any], case: Any) -> None:
    for side in ("illegal", "legal"):
        wanted = getattr(case, side)
        values[side] = wanted[:CLASSES] if isinstance(wanted, list) else min(wanted, CLASSES)
    if case.adapt_steps is not None:
        values["adapt_steps"] = LEAST["adapt"]["steps"]
    values.pop("generate", None)  # numbers of images of its own: the least are everyone's


def _domain(plan: Plan, name: str, hub: Path, size_px: int | None, unavailable: list[str]) -> None:
    values, domain = plan.values["domains"][name], plan.params.domains[name]
    scores = list(domain.score_names())
    if left_out := [score for score in scores if score in unavailable]:
        plan.notes.append(f"domains.{name}: not scored by {', '.join(left_out)}, whose package is not installed")
    values["scores"] = [score for score in scores if score not in left_out]
    if not values["scores"]:
        raise FreezeAsGuardError(f"domains.{name} has no score left without {', '.join(left_out)}; install the extra")
    px = size_px or domain.size_px
    values |= {"size_px": px, "images_per_class": IMAGES_PER_CLASS, "held_out_images": 2}
    clean = values.get("clean") or {}
    if clean.get("face_detector") == "yunet":
        values["clean"] = {**clean, "face_detector": "haar", "face_model": None}
        plan.notes.append(f"domains.{name}: faces are counted by Haar's cascade, as YuNet's file is not fabricated")
    if values.get("caption"):
        values["caption"] = {**values["caption"], "model": str(hub / "blip2"), "revision": None, "batch_size": 4}
    elif "caption" in values and domain.caption is not None:  # `caption: {}`, the default model
        values["caption"] = {"model": str(hub / "blip2"), "batch_size": 4}
    classes = _named_classes(plan.params, name)
    people = any(score in scores for score in ("facenet512", "facenet", "vgg_face", "dlib"))
    for part, block in _sources(name, values):
        if made := _source(part, block, classes, hub / "sets", people):
            side = max(px, domain.clean.min_side_px)
            plan.domains.setdefault(name, []).append({**made, "size_px": side})


def _sources(name: str, values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A domain's own source, or those of its parts."""
    parts = values.get("parts") or {}
    yield from ((f"{name}-{part}", block) for part, block in parts.items()) if parts else [(name, values)]


def _source(name: str, block: dict[str, Any], classes: list[str], sets: Path, people: bool) -> dict[str, Any] | None:
    """Point a source at what will be fabricated, and say what that is; None for one that ships with the packages."""
    source = block["source"]
    if source == "archive":
        path = sets / f"{name}.zip"
        block["archive"] = {"path": str(path)}
        return {"layout": "ff25", "to": path, "classes": classes, "pictures": "faces" if people else "drawings"}
    if source == "hf":
        hf = block["hf"]
        told = f"{hf['repo']} {hf.get('class_name')}".lower()
        made = {"layout": "parquet", "to": sets / name, "pictures": "logos" if "logo" in told else "drawings"}
        made |= {"image": hf.get("image_column", "image"), "caption": hf.get("caption_column")}
        made |= {"class": hf.get("class_column"), "split": hf.get("split", "train")}
        made["classes"] = [hf["class_name"]] if hf.get("class_name") else classes
        block["hf"] = {**hf, "repo": str(sets / name), "revision": None}
        return made
    if source in ("folder", "crawl"):
        crawled = list((block.get("crawl") or {}).get("classes", {})) if source == "crawl" else []
        block |= {"source": "folder", "path": str(sets / name), "crawl": None}
        made = {"layout": "folders", "to": sets / name, "classes": crawled or classes}
        return {**made, "pictures": "faces" if people else "drawings"}
    return None


def _named_classes(params: Params, domain: str) -> list[str]:
    """What the cases call the domain's classes, and invented names for those that they only count."""
    from freezeasguard.data.embedded.orl import pseudonyms

    cases = [case for case in params.cases.values() if case.domain == domain]
    sides = [side for case in cases for side in (case.illegal, case.legal)]
    named = list(dict.fromkeys(name for side in sides if isinstance(side, list) for name in side[:CLASSES]))
    invented = [name.replace(" ", "_") for name in pseudonyms()]
    counted = any(isinstance(side, int) for side in sides)
    return [*named, *invented[: 2 * CLASSES + 1 if counted else 0]]


def _weights(scores: list[str]) -> dict[str, Any]:
    """The keys of the block `score` that name files, for the scores that need them."""
    files = {
        "csd": {"csd_weights": "csd_vit_l.pth"},
        "nudenet": {"nudenet_weights": "640m.onnx", "nudenet_px": 640},
        "nudenet_rate": {"nudenet_weights": "640m.onnx", "nudenet_px": 640},
        "fid": {"inception_weights": "weights-inception-2015-12-05-6726825d.pth"},
        "kid": {"inception_weights": "weights-inception-2015-12-05-6726825d.pth"},
        "clip": {"clip_folder": "clip-vit-base-patch16"},
        "topiq": {"topiq_weights": "cfanet_fr_pipal_res50-69bbe5ba.pth"},
    }
    unused: dict[str, Any] = {key: None for keys in files.values() for key in keys if key != "nudenet_px"}
    needed = {key: value for score in scores for key, value in files.get(score, {}).items()}
    return unused | {key: f"{WEIGHTS}/{value}" if isinstance(value, str) else value for key, value in needed.items()}


def face_models(scores: list[str]) -> list[str]:
    """DeepFace's names of the recognisers behind the scores."""
    return [model for score in scores if (model := getattr(SCORES[score], "model", None))]
