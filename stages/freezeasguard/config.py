"""params.yaml: its schema, its checks, its presets, and the profiles that fill it.

Every stage loads the whole file, so that a misspelt key stops the first stage and not the last.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_atomically

PARAMS = Path("params.yaml")
ARMS = ("pretrained", "full", "freezeasguard", "random")
"""Arms at the headline rho; a sweep adds e.g. freezeasguard-10 and random-10."""

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Domain(Block):
    """Where a domain's images come from."""

    source: Literal["embedded-figures", "folder"]
    path: Path | None = None
    """Of a folder source: images in one sub-folder a class."""
    images_per_class: Positive = 60
    size_px: Positive = 64
    mask_learning_images: Positive = 100
    """A class; where it has fewer than 1.5 times as many images, half of them (paper, App. E)."""
    held_out_images: Positive = 4
    """A class; taken from the adaptation half and never trained on: their captions are the held-out prompts."""

    @model_validator(mode="after")
    def _folder_has_path(self) -> Domain:
        if self.source == "folder" and self.path is None:
            raise ValueError("source is folder, so path must name one")
        return self


class Model(Block):
    """A diffusers folder, or a hub repository by pinned revision."""

    path: Path | None = None
    repo: str | None = None
    revision: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.path is None) == (self.repo is None):
            raise ValueError("give either path or repo")
        if self.repo is not None and self.revision is None:
            raise ValueError("repo needs a revision: an unpinned model is not reproducible")
        return self


class Case(Block):
    """A domain, a model, and how many of the domain's classes are illegal and legal."""

    domain: str
    model: str
    table: int
    illegal: Positive
    legal: Positive
    sweep: list[Annotated[int, Field(ge=0, le=100)]] = []
    """Further freeze percents, each with a freezeasguard and a random arm."""


class Cell(Block):
    case: str
    arm: str


class SweepCell(Cell):
    """An arm at a percent of its case's sweep, and the stage that protects it."""

    stage: Literal["learn_mask", "random_freeze"]


class Finetuning(Block):
    steps: Annotated[int, Field(ge=0)]
    batch_size: Positive
    lr: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    max_grad_norm: PositiveFloat = 1.0
    flip: bool = True
    checkpoint_steps: Positive = 50


class Relearn(Finetuning):
    users: Literal["joint", "per_side"]


class Adapt(Finetuning):
    pass


MASK_PRESETS: dict[str, dict[str, Any]] = {
    # Driven by the task signal: two users whose signals do not cancel, comparable scales of the two
    # sides, an adaptive step, and sparsity as a constraint that ranks nothing.
    "freezeasguard": dict(
        users="per_side",
        user_steps=1,
        order="user_first",
        logits_init="ratio",
        derivative="exact",
        mask_optimizer="adam",
        mask_lr=0.02,
        sparsity="projection",
        sparsity_weight=0.0,
        lambdas="equal",
        normalise=True,
        lower_loss="sum",
        user_lr=1e-5,
        precision="float32",
    ),
    # The paper's text: Algorithm 1, Eq. 5-10, App. B and E. It leaves the sparsity weight open.
    "paper": dict(
        users="joint",
        user_steps=10,
        order="user_first",
        logits_init="negative",
        derivative="as_printed",
        mask_optimizer="sgd",
        mask_lr=10.0,
        sparsity="penalty",
        sparsity_weight=5e3,
        lambdas="proportional",
        normalise=False,
        lower_loss="sum",
        user_lr=1e-5,
        precision="float32",
    ),
    # The authors' published code and scripts.
    "official": dict(
        users="joint",
        user_steps=4,  # a cycle of 5 batches, the first of which is the mask's
        order="mask_first",
        logits_init="uniform",
        derivative="exact",
        mask_optimizer="sgd",
        mask_lr=10.0,
        sparsity="penalty",
        sparsity_weight=5e3,
        lambdas="equal",
        normalise=False,
        lower_loss="mixed",
        user_lr=1e-5,
        precision="bfloat16",
    ),
}


class Mask(Block):
    """A preset, and what departs from it."""

    preset: Literal["freezeasguard", "paper", "official"]
    mask_steps: Positive
    batch_size: Annotated[int, Field(ge=2)] = 16
    temperature: PositiveFloat = 0.2
    diagnostic_seeds: Annotated[int, Field(ge=0)] = 1
    """Further runs from other seeds, only to report how far the masks agree."""
    users: Literal["joint", "per_side"] | None = None
    user_steps: Positive | None = None
    order: Literal["user_first", "mask_first"] | None = None
    logits_init: Literal["negative", "uniform", "ratio"] | None = None
    derivative: Literal["exact", "as_printed"] | None = None
    mask_optimizer: Literal["sgd", "adam"] | None = None
    mask_lr: PositiveFloat | None = None
    sparsity: Literal["penalty", "projection"] | None = None
    sparsity_weight: Annotated[float, Field(ge=0)] | None = None
    lambdas: Literal["proportional", "equal"] | None = None
    normalise: bool | None = None
    lower_loss: Literal["sum", "mixed"] | None = None
    user_lr: PositiveFloat | None = None
    precision: Literal["float32", "bfloat16"] | None = None

    def settings(self) -> dict[str, Any]:
        """The preset with its overrides: the fields of `bilevel.MaskConfig`."""
        own = self.model_dump(exclude={"preset", "diagnostic_seeds"})
        return {**MASK_PRESETS[self.preset], **{k: v for k, v in own.items() if v is not None}}


class Generate(Block):
    steps: Positive
    guidance_scale: Annotated[float, Field(ge=1)]
    prompts_per_class: Positive
    """Of the adaptation split: what the paper's evaluation uses."""
    held_out_prompts_per_class: Annotated[int, Field(ge=0)]
    images_per_prompt: Positive
    batch_size: Positive


class Score(Block):
    bootstrap_resamples: Positive


class Params(Block):
    profile: str
    rho: Ratio
    seed: Annotated[int, Field(ge=0)]
    workers: Positive
    """Processes side by side on a CPU: the two sides of a cell, or the seeds of a mask."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    domains: dict[str, Domain]
    models: dict[str, Model]
    cases: dict[str, Case]
    cells: dict[str, Cell]
    """Every case x arm, spelt out for dvc.yaml; `freezeasguard cells` writes it."""
    sweep_cells: dict[str, SweepCell]
    """The arms among them at the percents of a sweep, which have a protection stage each."""
    relearn: Relearn
    mask: Mask
    adapt: Adapt
    generate: Generate
    score: Score

    @model_validator(mode="after")
    def _references(self) -> Params:
        for name, case in self.cases.items():
            if case.domain not in self.domains:
                raise ValueError(f"cases.{name}.domain is {case.domain!r}; domains has {sorted(self.domains)}")
            if case.model not in self.models:
                raise ValueError(f"cases.{name}.model is {case.model!r}; models has {sorted(self.models)}")
        for key, expected in derive_cells(self.cases).items():
            if (found := getattr(self, key)) != expected:
                odd = sorted(set(found) ^ set(expected)) or sorted(found)
                raise ValueError(f"{key} does not match cases (see {odd[0]}); run `freezeasguard cells`")
        return self

    def arms(self, case: str) -> list[str]:
        """The arms of a case in the order of its table."""
        return [cell.arm for cell in self.cells.values() if cell.case == case]

    def arm_rho(self, arm: str) -> float:
        """The freeze ratio of an arm: its own percent, else the headline rho; 0 where nothing freezes."""
        method, _, percent = arm.partition("-")
        if method not in ("freezeasguard", "random"):
            return 0.0
        return int(percent) / 100 if percent else self.rho


def derive_cells(cases: dict[str, Case]) -> dict[str, dict[str, Any]]:
    """The blocks `cells` (case x arm by name "case-arm", in table order) and `sweep_cells`."""
    cells: dict[str, Any] = {}
    swept: dict[str, Any] = {}
    for name, case in cases.items():
        for arm in ARMS:
            cells[f"{name}-{arm}"] = Cell(case=name, arm=arm)
        for percent in case.sweep:
            for method, stage in (("freezeasguard", "learn_mask"), ("random", "random_freeze")):
                arm = f"{method}-{percent}"
                cells[f"{name}-{arm}"] = Cell(case=name, arm=arm)
                swept[f"{name}-{arm}"] = SweepCell(case=name, arm=arm, stage=stage)
    return {"cells": cells, "sweep_cells": swept}


def parse_params(values: Any, source: Path) -> Params:
    """Checked params; every mistake is named by its key, with the value found."""
    if not isinstance(values, dict):
        raise FreezeAsGuardError(f"{source} holds no mapping; run `freezeasguard profile tiny` for a fresh one")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"]) or "(file)"
            value = problem.get("input")
            shown = "" if isinstance(value, dict) else f" is {value!r}"
            if problem["type"] == "extra_forbidden":
                lines.append(f"{key} is not a key of this file; remove it or correct its spelling")
            elif problem["type"] == "missing":
                lines.append(f"{key} is missing; see `freezeasguard profile tiny` for every key")
            else:
                lines.append(f"{key}{shown}: {problem['msg']}")
        raise FreezeAsGuardError(f"{source}: " + "; ".join(lines)) from None


def load_params(path: Path = PARAMS) -> Params:
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise FreezeAsGuardError(f"{path} is missing; run `freezeasguard profile tiny`") from None
    try:
        return parse_params(yaml.safe_load(text), path)
    except yaml.YAMLError as error:
        raise FreezeAsGuardError(f"{path} is not YAML: {error}") from None


def profile_names() -> list[str]:
    folder = resources.files("freezeasguard") / "profiles"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def profile_text(name: str) -> str:
    if name not in profile_names():
        raise FreezeAsGuardError(f"there is no profile {name!r}; choose one of {', '.join(profile_names())}")
    return (resources.files("freezeasguard") / "profiles" / f"{name}.yaml").read_text()


def write_profile(name: str, path: Path = PARAMS) -> None:
    """Replace params.yaml by the profile; git shows what changed."""
    text = profile_text(name)
    parse_params(yaml.safe_load(text), Path(f"profiles/{name}.yaml"))
    with write_atomically(path) as temporary:
        temporary.write_text(text)


def write_cells(path: Path = PARAMS) -> None:
    """Derive `cells` and `sweep_cells` from `cases` again, leaving everything else of the file as it is."""
    from ruamel.yaml import YAML

    yaml_file = YAML()
    yaml_file.preserve_quotes = True
    values = yaml_file.load(path.read_text())
    cases = {name: Case.model_validate(dict(case)) for name, case in values["cases"].items()}
    for key, cells in derive_cells(cases).items():
        values[key] = {name: cell.model_dump() for name, cell in cells.items()}
    with write_atomically(path) as temporary:
        with temporary.open("w") as file:
            yaml_file.dump(values, file)
