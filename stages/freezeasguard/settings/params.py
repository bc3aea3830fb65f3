"""params.yaml: its schema, its checks, its presets, and the profiles that fill it.

Every stage loads the whole file, so that a misspelt key stops the first stage and not the last.
"""

from __future__ import annotations

from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import read_json, write_atomically, write_json
from freezeasguard.scores.registry import EMBEDDED_SCORES, OTHER_SCORES, SCORES

PARAMS = Path("params.yaml")
CELLS = Path("data/cells.json")
"""Beside params.yaml: the cells that its cases make, spelt out for dvc.yaml, which can derive nothing itself."""
BASELINES = {"uce": "uce", "uce-b": "uce", "imma": "imma"}
"""Arms that a case may ask for beside the headline's four, and the stage that protects each."""
ERASERS = ("uce", "uce-b")
BEFORE = "-before"
"""Ends the name of an eraser's arm whose users have not trained: its gate, before any fine-tuning."""

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Clean(Block):
    """Which images are good enough (paper, App. C). The defaults keep everything that can be read."""

    min_side_px: Positive = 1
    """Shorter side, before cropping; the paper's 512."""
    max_pixels: Positive = 50_000_000
    """Larger images are refused before they are decoded."""
    faces: Annotated[int, Field(ge=0)] | None = None
    """Exactly so many faces. The paper prints ">3", which must mean that a face is present: use 1."""
    face_detector: Literal["haar", "yunet"] = "haar"
    """OpenCV's Haar cascade, shipped with it; or YuNet, whose model file `face_model` names."""
    face_model: Path | None = None
    crop: Literal["centre", "face"] = "centre"
    """Where the square is cut: the middle of the image, or as near to the face as it fits."""
    near_duplicate_bits: Annotated[int, Field(ge=0, le=64)] | None = None
    """Two images whose 64-bit perceptual hashes differ in at most so many bits are one; null: not compared."""


class Caption(Block):
    """BLIP-2, for images whose source ships no caption (paper, App. C)."""

    model: str = "Salesforce/blip2-opt-2.7b"
    revision: str | None = None
    prompt: str = "a photo of {subject} which shows"
    batch_size: Positive = 16
    max_new_tokens: Positive = 40


class Archive(Block):
    """A zip of class folders: a local file, or a URL that is fetched once."""

    path: Path | None = None
    url: str | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    max_bytes: Positive = 20 * 2**30
    max_unpacked_bytes: Positive = 40 * 2**30
    timeout_s: PositiveFloat = 7200
    allow_private: bool = False

    @model_validator(mode="after")
    def _source(self) -> Archive:
        if (self.path is None) == (self.url is None):
            raise ValueError("give either path or url")
        if self.url is not None and self.sha256 is None:
            raise ValueError("url needs sha256: a download without a checksum is not reproducible")
        return self


class Hub(Block):
    """A data set of the Hugging Face hub by pinned revision, or a local one of the same layout."""

    repo: str
    revision: str | None = None
    split: str = "train"
    image_column: str = "image"
    caption_column: str | None = None
    class_column: str | None = None
    class_name: str | None = None
    """The one class of all images, where no column says it."""
    licence: str = "see the data set's page"
    max_images: Positive | None = None

    @model_validator(mode="after")
    def _class(self) -> Hub:
        if (self.class_column is None) == (self.class_name is None):
            raise ValueError("give either class_column or class_name")
        if self.revision is None and not Path(self.repo).is_dir():
            raise ValueError(f"repo {self.repo!r} is no local folder, so it needs a revision")
        return self


class Query(Block):
    """What is asked for one class."""

    query: str = ""
    urls: list[str] = []
    images: Positive = 100
    subject: str | None = None
    """How captions call the class; the class's own name where it is null."""


class Crawl(Block):
    """icrawler's engines, any result page, or lists of URLs."""

    engine: Literal["google", "bing", "baidu", "flickr", "page", "url-list"]
    classes: dict[str, Query]
    search_url: str | None = None
    """Of the engine page: with {query} and {page}."""
    pages: Positive = 1
    licence: str | None = None
    """The engine's own licence filter, where it has one, e.g. noncommercial."""
    max_bytes: Positive = 20 * 2**20
    timeout_s: PositiveFloat = 30
    threads: Positive = 4
    respect_robots: bool = True
    allow_private: bool = False
    """Loopback and private addresses; for tests and local mirrors."""

    @model_validator(mode="after")
    def _engine(self) -> Crawl:
        if self.engine == "page" and not (self.search_url and "{query}" in self.search_url):
            raise ValueError("the engine page needs a search_url with {query}")
        for name, query in self.classes.items():
            if not (query.urls if self.engine == "url-list" else query.query):
                raise ValueError(f"classes.{name} has no {'urls' if self.engine == 'url-list' else 'query'}")
        return self


class Domain(Block):
    """Where a domain's images come from, and what becomes of them."""

    source: Literal[
        "embedded-figures",
        "embedded-illustrators",
        "embedded-explicit",
        "embedded-orl",
        "folder",
        "hf",
        "archive",
        "crawl",
    ]
    path: Path | None = None
    """Of a folder source: a folder with a sub-folder a class, or a .csv or .jsonl with path, class, caption."""
    hf: Hub | None = None
    archive: Archive | None = None
    crawl: Crawl | None = None
    clean: Clean = Clean()
    caption: Caption | None = None
    """Null: captions are the source's, and images without one are "a photo of SUBJECT"."""
    explicit: bool = False
    """Explicit material: needs allow_explicit, and is blurred wherever a report shows it."""
    images_per_class: Positive = 60
    """Of the embedded sources; the ORL photographs are 10 a person and 200 in all."""
    size_px: Positive = 64
    mask_learning_images: Positive = 100
    """A class; where it has fewer than 1.5 times as many images, half of them (paper, App. E)."""
    held_out_images: Positive = 4
    """A class; taken from the adaptation half and never trained on: their captions are the held-out prompts."""
    scores: Annotated[list[str], Field(min_length=1)] | None = None
    """Names out of `scores.SCORES`, the first being the one a table argues with; null: the source's own."""

    def score_names(self) -> tuple[str, ...]:
        """What images of this domain are scored with, in the order of the table's columns."""
        return tuple(self.scores) if self.scores else EMBEDDED_SCORES.get(self.source, OTHER_SCORES)

    @model_validator(mode="after")
    def _scores_are_known(self) -> Domain:
        if unknown := sorted(set(self.scores or ()) - set(SCORES)):
            raise ValueError(f"there is no score {unknown[0]!r}; choose from {', '.join(SCORES)}")
        return self

    @model_validator(mode="after")
    def _source_is_described(self) -> Domain:
        needed = {"folder": "path", "hf": "hf", "archive": "archive", "crawl": "crawl"}.get(self.source)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"source is {self.source}, so {needed} must be given")
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
    table: int | None = None
    """Of the paper; null for a case of one's own."""
    illegal: Positive | Annotated[list[str], Field(min_length=1)]
    """How many classes, drawn by the seed, or which ones by name."""
    legal: Positive | Annotated[list[str], Field(min_length=1)]
    baselines: list[Literal["uce", "uce-b", "imma"]] = []
    """Rival methods beside full, FreezeAsGuard and random: UCE in reading A or B, IMMA."""
    concepts: list[str] = []
    """What UCE erases; the illegal classes' subjects where the list is empty."""
    guide: str = " "
    """What UCE makes the concepts mean: "celebrity" for people, "art" for artists (paper's authors)."""
    adapt_steps: Positive | None = None
    """Of this case's users; null: adapt.steps. The paper trains longer on explicit content."""
    adapt_lr: PositiveFloat | None = None
    """Of this case's users; null: adapt.lr. An attacker takes the rate that serves the content best."""
    sweep: list[Annotated[int, Field(ge=0, le=100)]] = []
    """Further freeze percents, each with a freezeasguard and a random arm."""
    granularities: list[Literal["row", "element"]] = []
    """Finer masks than the paper's tensors, each with a freezeasguard and a random arm at the headline rho."""
    controls: list[
        Literal[
            "random-parameters", "magnitude", "attention", "convolutions", "time_embedding", "one_shot", "zeroed_signal"
        ]
    ] = []
    """Further masks of the headline size: drawn by parameter count, by rule of thumb, or learned in part only."""


class Cell(Block):
    case: str
    arm: str
    protected: str
    """The protected model that the arm's users start from; another arm's, where this one does not train."""
    steps: Annotated[int, Field(ge=0)] | None = None
    """Of its users; null: adapt.steps."""
    lr: PositiveFloat | None = None
    """Of its users; null: adapt.lr."""


class SweepCell(Block):
    """An arm beside the headline's four, and the stage that protects it."""

    case: str
    arm: str
    stage: Literal["learn_mask", "random_freeze", "uce", "imma"]
    block: str
    also: str
    """The two keys of params.yaml that the arm is made from, beside the seed; "seed" where there is no other."""


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
    # Driven by the task signal. Two users, one a side, whose signals do not cancel; they move as the real user
    # does and re-adapt between mask steps. What a unit is worth is read along the whole path from the users' weights
    # to theta_pre, on the same noise for both sides and on one scale. Sparsity is a constraint that ranks nothing.
    # The mask's optimiser is plain gradient descent: from an almost flat start each logit is then the sum of its
    # unit's normalised signals times a slope that all share at first, so that the final ranking is that of the
    # averaged importances. Adam would turn every signal into its sign and so flatten the ranking.
    "freezeasguard": dict(
        users="per_side",
        user_steps=1,
        order="user_first",
        mask_batch_size=None,
        granularity="tensor",
        signal="user_path",
        path_points=1,
        common_noise=True,
        logits_init="ratio",
        derivative="exact",
        mask_optimizer="sgd",
        mask_lr=0.01,
        sparsity="projection",
        sparsity_weight=0.0,
        lambdas="equal",
        illegal_weight=0.5,
        normalise=True,
        lower_loss="sum",
        user_optimizer="adamw",
        user_lr=1e-5,
        precision="float32",
    ),
    # The paper's text: Algorithm 1, Eq. 5-10, App. B and E. It leaves the sparsity weight open.
    "paper": dict(
        users="joint",
        user_steps=10,
        order="user_first",
        mask_batch_size=None,
        granularity="tensor",
        signal="local",
        path_points=1,
        common_noise=False,
        logits_init="negative",
        derivative="as_printed",
        mask_optimizer="sgd",
        mask_lr=10.0,
        sparsity="penalty",
        sparsity_weight=5e3,
        lambdas="proportional",
        illegal_weight=0.5,
        normalise=False,
        lower_loss="sum",
        user_optimizer="sgd",
        user_lr=1e-5,
        precision="float32",
    ),
    # The authors' published code and scripts.
    "official": dict(
        users="joint",
        user_steps=4,  # a cycle of 5 batches, the first of which is the mask's
        order="mask_first",
        mask_batch_size=None,
        granularity="tensor",
        signal="local",
        path_points=1,
        common_noise=False,
        logits_init="uniform",
        derivative="exact",
        mask_optimizer="sgd",
        mask_lr=10.0,
        sparsity="penalty",
        sparsity_weight=5e3,
        lambdas="equal",
        illegal_weight=0.5,
        normalise=False,
        lower_loss="mixed",
        user_optimizer="sgd",
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
    mask_batch_size: Positive | None = None
    """Images a side in a mask step; null: half of batch_size, as in a user step."""
    granularity: Literal["tensor", "row", "element"] | None = None
    signal: Literal["local", "path", "user_path"] | None = None
    path_points: Positive | None = None
    common_noise: bool | None = None
    order: Literal["user_first", "mask_first"] | None = None
    logits_init: Literal["negative", "uniform", "ratio"] | None = None
    derivative: Literal["exact", "as_printed"] | None = None
    mask_optimizer: Literal["sgd", "adam"] | None = None
    mask_lr: PositiveFloat | None = None
    sparsity: Literal["penalty", "projection"] | None = None
    sparsity_weight: Annotated[float, Field(ge=0)] | None = None
    lambdas: Literal["proportional", "equal"] | None = None
    illegal_weight: Ratio | None = None
    """Where lambdas are equal: more of it mitigates more, and costs the legal side more."""
    normalise: bool | None = None
    lower_loss: Literal["sum", "mixed"] | None = None
    user_optimizer: Literal["sgd", "adamw"] | None = None
    user_lr: PositiveFloat | None = None
    precision: Literal["float32", "bfloat16"] | None = None

    def settings(self) -> dict[str, Any]:
        """The preset with its overrides: the fields of `bilevel.MaskConfig`."""
        own = self.model_dump(exclude={"preset", "diagnostic_seeds"})
        return {**MASK_PRESETS[self.preset], **{k: v for k, v in own.items() if v is not None}}


class UCE(Block):
    """Closed-form erasing (METHOD, section 4)."""

    erase_scale: Annotated[float, Field(ge=0)] = 1.0
    ridge: PositiveFloat = 0.5
    preserve: list[str] = []
    """Prompts to keep, besides the empty one of reading A."""

    def setting(self) -> str:
        return f"erase {self.erase_scale:g}, ridge {self.ridge:g}"


class IMMA(Block):
    """Immunising (METHOD, section 4)."""

    steps: Positive
    batch_size: Positive
    inner_lr: PositiveFloat
    outer_lr: PositiveFloat
    attn_scope: Literal["all", "cross"] = "all"
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    max_grad_norm: PositiveFloat = 1.0

    def setting(self) -> str:
        return f"outer {self.outer_lr:g}, inner {self.inner_lr:g}, {self.steps} pairs"


class Generate(Block):
    steps: Positive
    guidance_scale: Annotated[float, Field(ge=1)]
    prompts_per_side: Positive
    """Of the adaptation split, what the paper's evaluation uses; dealt evenly to the classes, one each at least."""
    held_out_prompts_per_side: Annotated[int, Field(ge=0)]
    images_per_prompt: Positive
    batch_size: Positive


class Score(Block):
    """How images are scored; the files are of the paper's own scores, which `domains.<name>.scores` asks for."""

    bootstrap_resamples: Positive
    comparison_resamples: Positive = 4000
    """Of the paired differences: p is 2 / (n + 1) at least, and Holm's correction multiplies that by their number."""
    face_detector: str = "retinaface"
    """DeepFace's detector backend."""
    nudenet_weights: Path | None = None
    """`640m.onnx`; null: the network that NudeNet ships."""
    nudenet_px: Positive = 320
    nudenet_threshold: Annotated[float, Field(ge=0.25, le=1)] = 0.25
    csd_weights: Path | None = None
    inception_weights: Path | None = None
    topiq_weights: Path | None = None
    clip_folder: Path | None = None
    """A CLIP in transformers' layout, e.g. openai/clip-vit-base-patch16."""
    kid_subset_size: Positive = 1000
    """At most; half of the smaller set where that is less."""
    kid_subsets: Annotated[int, Field(ge=2)] = 100


class Study(Block):
    """Masks and baselines of one case against their controls, with both role assignments (see `study`)."""

    case: str
    seed: Annotated[int, Field(ge=0)]
    masks: bool = True
    """Learned masks of every granularity, and their blind controls."""
    random_draws: Positive = 5
    rules: bool = True
    """Also masks by rule of thumb."""
    one_shot: bool = True
    """Also what a single mask step would freeze."""
    rhos: list[Ratio] = []
    """Further freeze ratios of the learned masks, at even weights."""
    illegal_weights: list[Ratio] = []
    """Further weights of the illegal side, at the headline rho."""
    other_case: str | None = None
    """A case whose mask is tried on this one's data."""
    uce: list[UCE] = []
    imma: list[IMMA] = []
    """Settings to sweep, each with the case's roles as given."""

    def mask_settings(self, rho: float) -> list[tuple[float, float]]:
        """(freeze ratio, weight of the illegal side) of every learned mask, the headline's first."""
        return [(rho, 0.5), *((r, 0.5) for r in self.rhos), *((rho, w) for w in self.illegal_weights)]


class Params(Block):
    profile: str
    rho: Ratio
    seed: Annotated[int, Field(ge=0)]
    workers: Positive
    """Processes side by side on a CPU: the two sides of a cell, or the seeds of a mask."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    allow_explicit: bool = False
    """Nothing explicit is fetched, read or rendered unless this is true."""
    domains: dict[str, Domain]
    models: dict[str, Model]
    cases: dict[str, Case]
    relearn: Relearn
    mask: Mask
    uce: UCE
    imma: IMMA
    adapt: Adapt
    generate: Generate
    score: Score
    studies: dict[str, Study] = {}
    study_tables: dict[str, list[str]] = {}
    """Which studies a table is made of, e.g. those of one domain and several seeds."""

    @model_validator(mode="after")
    def _references(self) -> Params:
        for name, domain in self.domains.items():
            if domain.explicit and not self.allow_explicit:
                raise ValueError(f"domains.{name} is explicit; set allow_explicit: true to say that you mean it")
        for name, case in self.cases.items():
            if case.domain not in self.domains:
                raise ValueError(f"cases.{name}.domain is {case.domain!r}; domains has {sorted(self.domains)}")
            if case.model not in self.models:
                raise ValueError(f"cases.{name}.model is {case.model!r}; models has {sorted(self.models)}")
        for name, study in self.studies.items():
            for key, case in (("case", study.case), ("other_case", study.other_case)):
                if case is not None and case not in self.cases:
                    raise ValueError(f"studies.{name}.{key} is {case!r}; cases has {sorted(self.cases)}")
        for name, studies in self.study_tables.items():
            if unknown := sorted(set(studies) - set(self.studies)):
                raise ValueError(f"study_tables.{name} names {unknown[0]!r}; studies has {sorted(self.studies)}")
        return self

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """Every case x arm by name "case-arm", in table order."""
        return derive_cells(self.cases)[0]

    @cached_property
    def sweep_cells(self) -> dict[str, SweepCell]:
        """Those beside the headline's four, which have a protection stage each."""
        return derive_cells(self.cases)[1]

    def arms(self, case: str) -> list[str]:
        """The arms of a case in the order of its table."""
        return [cell.arm for cell in self.cells.values() if cell.case == case]

    def adapt_block(self, case: str, arm: str = "full") -> Adapt:
        """How the users of a cell train: `adapt`, with what the case has of its own."""
        cell = self.cells[f"{case}-{arm}"]
        own = {"steps": cell.steps, "lr": cell.lr}
        return self.adapt.model_copy(update={key: value for key, value in own.items() if value is not None})

    def protected(self, case: str, arm: str) -> Path:
        """The folder of the arm's protected model, below data/protected."""
        return Path(case) / self.cells[f"{case}-{arm}"].protected

    def domain_of(self, case: str) -> Domain:
        return self.domains[self.cases[case].domain]

    def arm_rho(self, arm: str) -> float:
        """The freeze ratio of an arm: its own percent, else the headline rho; 0 where nothing freezes."""
        if arm in ("pretrained", "full") or arm.removesuffix(BEFORE) in BASELINES:
            return 0.0
        _, percent = split_arm(arm)
        return self.rho if percent is None else percent / 100


def split_arm(arm: str) -> tuple[str, int | None]:
    """The method of an arm and its own percent: "random-10" -> ("random", 10), "uce-b" -> ("uce-b", None)."""
    method, _, percent = arm.rpartition("-")
    return (method, int(percent)) if percent.isdecimal() else (arm, None)


def arm_granularity(arm: str) -> str:
    """What the mask of an arm is made of: "random-row" -> "row"; the paper's tensors without a suffix."""
    suffix = arm.rpartition("-")[2]
    return suffix if suffix in ("row", "element") else "tensor"


def made_from(arm: str, stage: str, case: str) -> dict[str, str]:
    """The keys of params.yaml that DVC watches for an arm of a sweep: its method's block, and one more."""
    block = {"learn_mask": "mask", "uce": "uce", "imma": "imma"}.get(stage, "seed")
    if stage == "uce":
        return {"block": block, "also": f"cases.{case}"}  # its names and its guide
    follows_headline = stage != "imma" and split_arm(arm)[1] is None
    return {"block": block, "also": "rho" if follows_headline else "seed"}


def derive_cells(cases: dict[str, Case]) -> tuple[dict[str, Cell], dict[str, SweepCell]]:
    """`Params.cells` and `Params.sweep_cells`."""
    cells: dict[str, Cell] = {}
    swept: dict[str, SweepCell] = {}
    for name, case in cases.items():

        def add(arm: str, stage: Any = None, name: str = name, case: Case = case) -> None:
            own = {"steps": case.adapt_steps, "lr": case.adapt_lr}
            cells[f"{name}-{arm}"] = Cell(case=name, arm=arm, protected=arm, **own)
            if stage:
                swept[f"{name}-{arm}"] = SweepCell(case=name, arm=arm, stage=stage, **made_from(arm, stage, name))

        cells[f"{name}-pretrained"] = Cell(case=name, arm="pretrained", protected="full", steps=0)
        for arm in (arm for arm in ERASERS if arm in case.baselines):
            cells[f"{name}-{arm}{BEFORE}"] = Cell(case=name, arm=f"{arm}{BEFORE}", protected=arm, steps=0)
        add("full")
        for arm in (arm for arm in BASELINES if arm in case.baselines):
            add(arm, stage=BASELINES[arm])
        add("freezeasguard")
        add("random")
        for suffix in (*case.granularities, *case.sweep):
            add(f"freezeasguard-{suffix}", stage="learn_mask")
            add(f"random-{suffix}", stage="random_freeze")
        for arm in case.controls:
            add(arm, stage="learn_mask" if arm in ("one_shot", "zeroed_signal") else "random_freeze")
    return cells, swept


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
    folder = resources.files("freezeasguard.settings") / "profiles"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def profile_text(name: str) -> str:
    if name not in profile_names():
        raise FreezeAsGuardError(f"there is no profile {name!r}; choose one of {', '.join(profile_names())}")
    return (resources.files("freezeasguard.settings") / "profiles" / f"{name}.yaml").read_text()


def write_profile(name: str, path: Path = PARAMS) -> None:
    """Replace params.yaml by the profile, and its cells; git shows what changed."""
    text = profile_text(name)
    params = parse_params(yaml.safe_load(text), Path(f"profiles/{name}.yaml"))
    with write_atomically(path) as temporary:
        temporary.write_text(text)
    write_json(path.parent / CELLS, _cells_content(params))


def update_params(path: Path, changed: dict[str, Any]) -> None:
    """Replace whole top-level blocks, leaving everything else of the file, comments too, as it is."""
    from ruamel.yaml import YAML

    yaml_file = YAML()
    yaml_file.preserve_quotes = True
    yaml_file.width = 4096  # flow lists stay on one line
    values = yaml_file.load(path.read_text())
    values.update(changed)
    with write_atomically(path) as temporary, temporary.open("w") as file:
        yaml_file.dump(values, file)


def write_cells(path: Path = PARAMS) -> None:
    """Derive the cells beside `path` from its cases again."""
    write_json(path.parent / CELLS, _cells_content(load_params(path)))


def check_cells(params: Params, path: Path = CELLS) -> None:
    """Refuse a file of cells that the cases have outgrown: dvc.yaml would run others than the tables ask for."""
    remedy = "run `freezeasguard cells`"
    found = read_json(path, remedy)
    for key, expected in _cells_content(params).items():
        block = found.get(key, {}) if isinstance(found, dict) else {}
        if odd := sorted(name for name in {*block, *expected} if block.get(name) != expected.get(name)):
            raise FreezeAsGuardError(f"{path}: {key} does not match the cases of params.yaml (see {odd[0]}); {remedy}")


def _cells_content(params: Params) -> dict[str, dict[str, Any]]:
    blocks = {"cells": params.cells, "sweep_cells": params.sweep_cells}
    return {key: {name: cell.model_dump() for name, cell in block.items()} for key, block in blocks.items()}
