"""`freezeasguard plan`: what params.yaml will cost before anything runs - cells, hours, disk, GPU memory.

Hours are floating-point operations over a throughput, which is stated and can be given; counted on networks without
weights. A backward pass costs two forward passes, gradient checkpointing one more. That frozen tensors save work is
left out: the figures are from above.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from freezeasguard.arms import Arm
from freezeasguard.checks import model_folder
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.masks.memory import activation_bytes, learning_bytes
from freezeasguard.models.family import Size, configurations, size_of
from freezeasguard.protections.components import component_tensors
from freezeasguard.settings.methods import Anchored
from freezeasguard.settings.params import Case, Params
from freezeasguard.settings.profiles import cells_content
from freezeasguard.settings.reading import read_yaml
from freezeasguard.sides import USERS

MAP = Path("dvc.yaml")
TFLOPS = {"bfloat16": 100.0, "tf32": 50.0, "float32": 25.0, "cpu": 0.03}
"""Sustained, of an H100 by how it computes, and of a CPU's core; a tenth of the H100's peak in bfloat16."""
SD_TFLOP = 0.80
"""A forward pass of SD v1.5 on 64 x 64 latents, whose activations `masks.memory` counts; others in proportion."""
PNG_BYTES_A_PIXEL, SCORE_S, CAPTION_S = 1.6, 0.02, 0.3
"""Of a photograph; seconds an image and extractor on a GPU; an image of BLIP-2."""
GIB = 2.0**30
LINKS = (
    "disk: of one copy; DVC keeps a second in its cache where the file system cannot clone files (ext4), unless it may "
    "link them: `dvc config --local cache.type hardlink,copy`"
)


def anchoring_copies(share: float) -> float:
    """Of the weights, that learning anchors holds beside gradients, where anchors are `share` of them.

    What is published; the anchors with two moments; two users' own tensors, with two moments each.
    """
    return 1 + 3 * share + 2 * 3 * (1 - share)


@dataclass(frozen=True)
class Cost:
    """Of one cell of a stage."""

    stage: str
    case: str | None = None
    tflop: float = 0.0
    seconds: float = 0.0
    disk_gib: float = 0.0
    gpu_gib: float = 0.0

    def hours(self, tflops: float) -> float:
        return (self.tflop / tflops + self.seconds) / 3600


def throughput(params: Params) -> tuple[str, float]:
    """The kind of device and its stated TFLOP/s; `auto` counts as a GPU where the models are no miniatures."""
    miniature = all(model.path is not None for model in params.models.values())
    if params.device == "cpu" or (params.device == "auto" and miniature):
        return "a CPU's core", TFLOPS["cpu"]
    compute = params.compute
    kind = "bfloat16" if compute.precision == "bfloat16" else "tf32" if compute.tf32 else "float32"
    return f"an H100 in {kind}", TFLOPS[kind]


def stage_counts(params: Params, path: Path = MAP) -> dict[str, int]:
    """Cells of each stage of dvc.yaml, as `dvc repro --dry` lists them; frozen ones are not run."""
    lists: dict[str, Any] = {**cells_content(params), "domains": params.domains, "cases": params.cases}
    counts = {}
    for name, stage in read_yaml(path)["stages"].items():
        if not stage.get("frozen"):
            each = str(stage.get("foreach", "")).strip("${}")
            if each and each not in lists:
                raise FreezeAsGuardError(f"{path}: stage {name} runs over {each!r}, which the plan does not know")
            counts[name] = len(lists[each]) if each else 1
    return counts


def costs(params: Params) -> list[Cost]:
    """Of every cell that costs more than seconds."""
    return [cost for case in params.cases for cost in _CaseCosts(params, case).all()]


class _CaseCosts:
    def __init__(self, params: Params, name: str) -> None:
        self.params, self.name = params, name
        self.case: Case = params.cases[name]
        self.domain = params.domain_of(name)
        self.n_classes = [n if isinstance(n, int) else len(n) for n in (self.case.illegal, self.case.legal)]

    @cached_property
    def size(self) -> Size:
        model = self.params.models[self.case.model]
        configs = configurations(model, model_folder(self.case.model, model))
        if configs is None:
            raise FreezeAsGuardError(
                f"models.{self.case.model}: the shape of {model.repo} is not known before it is here; run "
                f"`dvc repro fetch@{self.case.model}` first"
            )
        return size_of(configs, self.domain.size_px)

    @property
    def weights_gib(self) -> float:
        return 4 * self.size.parameters / GIB

    @property
    def step_tflop(self) -> float:
        """Of training, an image."""
        return self.size.unet_tflop * (4 if self.params.compute.gradient_checkpointing else 3)

    @property
    def activations(self) -> int:
        """Bytes, of an image that is trained on."""
        return round(activation_bytes((64, 64), self.params.compute) * self.size.unet_tflop / SD_TFLOP)

    def training_gib(self, copies: float, batch: int) -> float:
        """Of `copies` of the weights - themselves, gradients, moments - and a batch's activations."""
        compute = self.params.compute
        copies += 0.5 if compute.precision == "bfloat16" else 0  # autocast's
        return copies * self.weights_gib + self.activations * min(batch, compute.micro_batch_size or batch) / GIB

    def all(self) -> Iterator[Cost]:
        size, px, params = self.size, self.domain.size_px, self.params
        n_images = 3 * sum(self.n_classes) * self.domain.mask_learning_images  # App. E's classes have 2 to 4 times
        latents = 2 * 4 * (px / 8) ** 2 * 4 + 77 * 1024 * 4
        yield Cost("encode", self.name, 2 * n_images * size.encode_tflop, 0, n_images * latents / GIB, 4)
        relearn, n_users = params.relearn, sum(len(USERS[users]) for users in params.simulated_users(self.name))
        tflop = n_users * relearn.steps * relearn.batch_size * self.step_tflop
        memory = self.training_gib(4, relearn.batch_size)
        yield Cost("relearn", self.name, tflop, 0, n_users * self.weights_gib, memory)
        for arm in dict.fromkeys(arm.protected for arm in params.arms(self.name)):
            yield self._protect(arm)
        for arm in params.arms(self.name):
            yield self._adapt(arm)
            yield self._generate()
        n_extractors = len(self.domain.score_names())
        n_scored = self.n_generated * len(self.case.arms) + n_images
        yield Cost("score", self.name, 0, n_scored * n_extractors * SCORE_S * (px >= 256), 0.1, 4)
        if self.domain.caption is not None:
            yield Cost("caption", None, 0, n_images * CAPTION_S, 0, 8)

    def _protect(self, arm: Arm) -> Cost:
        params, block = self.params, arm.kind.block
        if block == "mask":
            mask = params.mask_block(self.name, arm)
            a_side = mask.mask_batch_size or mask.batch_size // 2
            images = mask.mask_steps * (mask.user_steps * mask.batch_size + 2 * a_side * mask.path_points)
            memory = learning_bytes(self.size.shapes, mask, params.compute, self.activations)["device"] / GIB
            tflop = images * self.step_tflop * (1 + mask.diagnostic_seeds)
            return Cost("protect", self.name, tflop, 0, 0.01, memory)
        if block == "imma":
            imma = params.imma_block(self.name)
            tflop = 2 * imma.steps * imma.batch_size * self.step_tflop
            return Cost("protect", self.name, tflop, 0, 0.3 * self.weights_gib, self.training_gib(6, imma.batch_size))
        if block == "anchored":
            own = Anchored.model_validate(params.own_block(self.name, block))
            # Two users' steps; both sides' terms, and what is published on three batches, beside the pretrained model.
            images = own.rounds * own.batch_size * (2 * own.user_steps + 2 + 3 + 3 / 3)
            held = sum(math.prod(self.size.shapes[name]) for name in component_tensors(own.component, self.size.shapes))
            share = held / self.size.parameters
            gradients = max(share, 1 - share)  # of whoever is at work
            memory = self.training_gib(anchoring_copies(share) + gradients, 3 * own.batch_size)
            return Cost("protect", self.name, images * self.step_tflop, 0, 0.3 * self.weights_gib, memory)
        return Cost("protect", self.name, disk_gib=0.1 if block == "uce" else 0.001)

    def _adapt(self, arm: Arm) -> Cost:
        block = self.params.adapt_block(self.name, arm)
        if not block.steps:
            return Cost("adapt", self.name, disk_gib=0.001)
        n_users = sum(self.n_classes) if getattr(block, "per_class", False) else 2
        tflop = n_users * block.steps * block.batch_size * self.step_tflop
        half = 0.5 if getattr(block, "store", "float32") == "bfloat16" else 1.0
        kept = n_users * self.weights_gib * (1 - arm.rho(self.params.rho)) * half
        return Cost("adapt", self.name, tflop, 0, kept, self.training_gib(4, block.batch_size))

    @cached_property
    def n_generated(self) -> int:
        """Images of an arm: as `models.generate.prompt_table` deals the prompts to the classes."""
        block = self.params.generate_block(self.name)
        asked = [n for n in (block.prompts_per_side, block.held_out_prompts_per_side) if n]
        prompts = sum(classes * max(1, n // classes) for classes in self.n_classes for n in asked)
        return prompts * block.images_per_prompt

    def _generate(self) -> Cost:
        block, size, px = self.params.generate_block(self.name), self.size, self.domain.size_px
        tflop = self.n_generated * (2 * block.steps * size.unet_tflop + size.decode_tflop)
        memory = self.weights_gib + 0.5 + 0.3 * block.batch_size * size.unet_tflop
        return Cost("generate", self.name, tflop, 0, self.n_generated * PNG_BYTES_A_PIXEL * px**2 / GIB, memory)


def lines(params: Params, tflops: float | None = None) -> Iterator[str]:
    """The plan as text: by stage, by table, and in all."""
    from freezeasguard.fetching import needs

    device, stated = throughput(params)
    tflops = tflops or stated
    yield f"profile {params.profile}: {len(params.cells)} cells; hours on {device}, at {tflops:g} TFLOP/s sustained"
    found = costs(params)
    yield f"{'stage':<10}{'cells':>6}{'hours':>9}{'disk GiB':>10}{'GPU GiB':>9}"
    counts = stage_counts(params)
    for stage, n in counts.items():
        own = [cost for cost in found if cost.stage == stage]
        hours, disk = sum(cost.hours(tflops) for cost in own), sum(cost.disk_gib for cost in own)
        peak = max((cost.gpu_gib for cost in own), default=0)
        yield f"{stage:<10}{n:>6}{hours:>9.2f}{disk:>10.1f}{peak:>9.1f}"
    total, disk = sum(cost.hours(tflops) for cost in found), sum(cost.disk_gib for cost in found)
    peak = max((cost.gpu_gib for cost in found), default=0)
    yield f"{'in all':<10}{sum(counts.values()):>6}{total:>9.2f}{disk:>10.1f}{peak:>9.1f}"
    yield LINKS
    by_table: Counter[str] = Counter()
    for cost in found:
        if cost.case is not None:
            table = params.cases[cost.case].table
            by_table[f"Table {table}" if table else f"case {cost.case}"] += cost.hours(tflops)
    yield "hours of " + ", ".join(f"{name} {hours:.2f}" for name, hours in sorted(by_table.items()))
    missing = [need for need in needs(params) if not need.here]
    gigabytes = math.ceil(10 * sum({need.what: need.gigabytes for need in missing}.values())) / 10
    yield f"to fetch: {len(missing)} things, {gigabytes:g} GB at least" if missing else "to fetch: nothing"
    for need in missing:
        yield f"  {need.key}: {need.what}"
