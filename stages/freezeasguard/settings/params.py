"""params.yaml: its schema and its checks.

Loaded by the stage `settings` alone, so that a misspelt key stops the first stage and not the last; the others read
what that stage resolved for them (see `resolve`).
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, StringConstraints, Tag, field_validator, model_validator

from freezeasguard.arms import PRETRAINED, Arm
from freezeasguard.data.names import slug
from freezeasguard.data.sources.registry import PARTS, SOURCES
from freezeasguard.protections.registry import METHODS
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.blocks import (
    Block,
    Bytes,
    Count,
    Device,
    Pixels,
    Positive,
    PositiveFloat,
    Rate,
    Ratio,
    Seed,
    Several,
    Workers,
)
from freezeasguard.settings.compute import Compute
from freezeasguard.settings.mask import Mask
from freezeasguard.settings.methods import IMMA, UCE, IMMAOfParams
from freezeasguard.settings.names import HUB_ID, ClassName, Commit, HubId, LocalPath, Name, Sha256
from freezeasguard.settings.reading import read_yaml, validated
from freezeasguard.settings.users import Adapt, Finetuning, Generate

PARAMS = Path("params.yaml")
Classes = Annotated[
    Annotated[Positive, Tag("count")] | Annotated[list[ClassName], Field(min_length=1), Tag("names")],
    Discriminator(lambda value: "names" if isinstance(value, list) else "count"),
]
"""How many classes, drawn by the seed, or which ones by name."""


class Clean(Block):
    """Which images are good enough (paper, App. C). The defaults keep everything that can be read."""

    min_side_px: Pixels = 1
    """Shorter side, before cropping; the paper's 512."""
    max_pixels: Annotated[int, Field(gt=0, le=10**9)] = 50_000_000
    """Larger images are refused before they are decoded."""
    faces: Count | None = None
    """Exactly so many faces. The paper prints ">3", which must mean that a face is present: use 1."""
    face_detector: Literal["haar", "yunet"] = "haar"
    """OpenCV's Haar cascade, shipped with it; or YuNet, whose model file `face_model` names."""
    face_model: LocalPath | None = None
    crop: Literal["centre", "face"] = "centre"
    """Where the square is cut: the middle of the image, or as near to the face as it fits."""
    near_duplicate_bits: Annotated[int, Field(ge=0, le=64)] | None = None
    """Two images whose 64-bit perceptual hashes differ in at most so many bits are one; null: not compared."""


BLIP2 = {"model": "Salesforce/blip2-opt-2.7b", "revision": "59a1ef6c1e5117b3f65523d1c6066825bcf315e3"}


class Caption(Block):
    """BLIP-2, for images whose source ships no caption (paper, App. C)."""

    model: str = BLIP2["model"]
    """A folder of `Blip2ForConditionalGeneration` and its processor, or their hub id."""
    revision: Commit | None = None
    """The hub's commit; a folder has none, and the default model its own."""
    prompt: str = "a photo of {subject} which shows"
    """With {subject} where the class's name goes."""
    batch_size: Positive = 16
    max_new_tokens: Positive = 40
    """Room for a caption; one that does not end in it is taken for a runaway."""
    checkpoint_images: Positive = 64
    """A killed run loses at most a batch; a power cut at most this many images (or a batch, if larger)."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("model", BLIP2["model"]) == BLIP2["model"]:
            return {**values, "revision": values.get("revision") or BLIP2["revision"]}
        return values

    @model_validator(mode="after")
    def _pinned(self) -> Caption:
        if self.on_hub and self.revision is None:
            raise ValueError(f"model {self.model!r} is of the hub, so it needs a revision")
        return self

    @property
    def on_hub(self) -> bool:
        """Whether the model is no folder: "data/blip2" looks like a hub id, but names one where data/ is one."""
        path = Path(self.model)
        like_one = re.fullmatch(r"[\w.-]+/[\w.-]+", self.model) is not None
        return like_one and not path.exists() and not path.parent.is_dir()

    @field_validator("prompt")
    @classmethod
    def _subject(cls, prompt: str) -> str:
        if "{subject}" not in prompt:
            raise ValueError("must have {subject} where the class's name goes")
        return prompt


class Archive(Block):
    """A zip of class folders: a local file, or a URL that is fetched once."""

    path: LocalPath | None = None
    url: str | None = None
    sha256: Sha256 | None = None
    max_bytes: Bytes = 20 * 2**30
    max_unpacked_bytes: Bytes = 40 * 2**30
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
    """A hub id, or a folder."""
    revision: Commit | None = None
    split: str = "train"
    image_column: str = "image"
    caption_column: str | None = None
    class_column: str | None = None
    class_name: ClassName | None = None
    """The one class of all images, where no column says it."""
    licence: str = "see the data set's page"
    max_images: Positive | None = None

    @model_validator(mode="after")
    def _class(self) -> Hub:
        if (self.class_column is None) == (self.class_name is None):
            raise ValueError("give either class_column or class_name")
        if not Path(self.repo).is_dir():
            if not re.fullmatch(HUB_ID, self.repo):
                raise ValueError(f"repo {self.repo!r} is neither a local folder nor a hub id, OWNER/NAME")
            if self.revision is None:
                raise ValueError(f"repo {self.repo!r} is no local folder, so it needs a revision")
        return self


class Query(Block):
    """What is asked for one class."""

    query: str = ""
    urls: list[Annotated[str, StringConstraints(strip_whitespace=True)]] = []
    images: Positive = 100
    subject: str | None = None
    """How captions call the class; the class's own name where it is null."""


class Crawl(Block):
    """icrawler's engines, any result page, or lists of URLs."""

    engine: Literal["google", "bing", "baidu", "flickr", "page", "url-list"]
    classes: dict[ClassName, Query]
    search_url: str | None = None
    """Of the engine page: with {query} and {page}."""
    pages: Positive = 1
    licence: str | None = None
    """The engine's own licence filter, where it has one, e.g. noncommercial."""
    max_bytes: Bytes = 20 * 2**20
    timeout_s: PositiveFloat = 30
    threads: Annotated[Positive, Field(le=64)] = 4
    respect_robots: bool = True
    allow_private: bool = False
    """Loopback and private addresses; for tests and local mirrors."""

    @model_validator(mode="after")
    def _engine(self) -> Crawl:
        if self.engine == "page" and not (self.search_url and "{query}" in self.search_url):
            raise ValueError("the engine page needs a search_url with {query}")
        folders: dict[str, str] = {}
        for name, query in self.classes.items():
            if (other := folders.setdefault(slug(name), name)) != name:
                raise ValueError(f"classes {other!r} and {name!r} would be one folder, {slug(name)!r}; rename one")
            if not (query.urls if self.engine == "url-list" else query.query):
                raise ValueError(f"classes.{name} has no {'urls' if self.engine == 'url-list' else 'query'}")
        return self


class Origin(Block):
    """Where images come from."""

    source: str
    """A name out of `data.sources.registry`."""
    path: LocalPath | None = None
    """Of a folder source: a folder with a sub-folder a class, or a .csv or .jsonl with path, class, caption."""
    hf: Hub | None = None
    archive: Archive | None = None
    crawl: Crawl | None = None
    explicit: bool = False
    """Explicit material: needs allow_explicit, and is blurred wherever a report shows it."""
    images_per_class: Positive = 60
    """Of the embedded sources; the ORL photographs are 10 a person and 200 in all."""

    def told_classes(self) -> list[str] | None:
        """The folders of its classes, where the settings name them; None where only the images do."""
        if self.hf is not None and self.hf.class_name is not None:
            return [slug(self.hf.class_name)]
        return [slug(name) for name in self.crawl.classes] if self.crawl is not None else None

    @model_validator(mode="after")
    def _source_is_described(self) -> Self:
        if self.source not in SOURCES:
            raise ValueError(f"source is {self.source!r}; choose from {', '.join(SOURCES)}")
        needed = SOURCES[self.source].needs
        if needed and not getattr(self, needed, None):
            raise ValueError(f"source is {self.source}, so {needed} must be given")
        return self


class Domain(Origin):
    """Where a domain's images come from, and what becomes of them."""

    parts: dict[Name, Origin] = {}
    """Of the source `parts`: other sources, whose classes stand side by side in one domain."""
    clean: Clean = Clean()
    caption: Caption | None = None
    """Null: captions are the source's, and images without one are "a photo of SUBJECT"."""
    size_px: Pixels = 64
    mask_learning_images: Positive = 100
    """A class; where it has fewer than 1.5 times as many images, half of them (paper, App. E)."""
    held_out_images: Positive = 4
    """A class; taken from the adaptation half and never trained on: their captions are the held-out prompts."""
    scores: Annotated[list[str], Field(min_length=1)] | None = None
    """Names out of `scores.SCORES`, the first being the one a table argues with; null: the source's own."""

    def score_names(self) -> tuple[str, ...]:
        """What images of this domain are scored with, in the order of the table's columns."""
        return tuple(self.scores) if self.scores else SOURCES[self.source].scores

    def origins(self) -> list[Origin]:
        """Itself, or the parts that it is made of."""
        return list(self.parts.values()) or [self]

    @property
    def any_explicit(self) -> bool:
        return self.explicit or any(part.explicit for part in self.parts.values())

    def explicit_classes(self) -> bool | list[str]:
        """The classes whose images are blurred, or whether all are: those of a part that does not name its own."""
        told = [part.told_classes() for part in self.parts.values() if part.explicit]
        return self.explicit or None in told or sorted(name for names in told for name in names or ()) or False

    def shows_explicit(self, class_name: str) -> bool:
        """Whether images of this class are blurred."""
        found = self.explicit_classes()
        return found if isinstance(found, bool) else class_name in found

    @model_validator(mode="after")
    def _scores_are_known(self) -> Self:
        if unknown := sorted(set(self.scores or ()) - set(SCORES)):
            raise ValueError(f"there is no score {unknown[0]!r}; choose from {', '.join(SCORES)}")
        return self

    @model_validator(mode="after")
    def _parts_are_apart(self) -> Self:
        if self.parts and self.source != PARTS:
            raise ValueError(f"source is {self.source}, which has no parts; set source: {PARTS}, or remove parts")
        part_of: dict[str, str] = {}
        for name, part in self.parts.items():
            if part.source == PARTS:
                raise ValueError(f"parts.{name}.source is {PARTS}; a part cannot be made of parts")
            for told in part.told_classes() or ():
                if (other := part_of.setdefault(told, name)) != name:
                    raise ValueError(f"parts {other} and {name} both have the class {told!r}; rename one")
        return self


class Model(Block):
    """A diffusers folder, or a hub repository by pinned revision."""

    path: LocalPath | None = None
    repo: HubId | None = None
    revision: Commit | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.path is None) == (self.repo is None):
            raise ValueError("give either path or repo")
        if self.path is not None and self.revision is not None:
            raise ValueError("a path has no revision; remove it, or give repo instead of path")
        if self.repo is not None and self.revision is None:
            raise ValueError("repo needs a revision: an unpinned model is not reproducible")
        return self


class OwnGenerate(Block):
    """What a case generates otherwise than the others."""

    prompts_per_side: Positive | None = None
    held_out_prompts_per_side: Count | None = None
    images_per_prompt: Positive | None = None
    batch_size: Positive | None = None
    """Larger images need smaller batches."""


class Case(Block):
    """A domain, a model, which of the domain's classes are illegal and legal, and the arms to compare."""

    domain: str
    model: str
    table: Annotated[Positive, Field(le=99)] | None = None
    """Of the paper; null for a case of one's own."""
    illegal: Classes
    legal: Classes
    learn_legal: list[str] = []
    """Classes whose mask-learning images stand for the legal side while theta_ft and masks are learned; none: those of
    `legal` (paper). The authors' code takes Modern-Logo whatever the domain (METHOD, reading 10): a domain of
    `parts` holds both."""
    arms: Annotated[list[Name], Field(min_length=2)]
    """In the order of the table (see `arms.Arm`); after a change, `freezeasguard cells`."""
    concepts: list[str] = []
    """What UCE erases, where the roles are as given; the illegal classes' subjects where the list is empty."""
    guide: str = " "
    """What UCE makes the concepts mean: "celebrity" for people, "art" for artists (paper's authors)."""
    adapt_steps: Positive | None = None
    """Of this case's users; null: adapt.steps. The paper trains longer on explicit content."""
    adapt_lr: Rate | None = None
    """Of this case's users; null: adapt.lr. An attacker takes the rate that serves the content best."""
    generate: OwnGenerate = OwnGenerate()
    """Of this case's images; null: those of the block `generate`."""

    @model_validator(mode="after")
    def _arms(self) -> Case:
        for name in self.arms:
            Arm.parse(name)
        if twice := sorted({name for name in self.arms if self.arms.count(name) > 1}):
            raise ValueError(f"arm {twice[0]!r} is listed twice")
        if missing := [name for name in (PRETRAINED, "full") if name not in self.arms]:
            raise ValueError(f"arms lack {missing[0]!r}: what an arm keeps is measured between those two")
        return self


class Score(Block):
    """How images are scored; the files are of the paper's own scores, which `domains.<name>.scores` asks for."""

    bootstrap_resamples: Positive
    comparison_resamples: Positive = 4000
    """Of the paired differences: p is 2 / (n + 1) at least, and Holm's correction multiplies that by their number."""
    face_detector: str = "retinaface"
    """DeepFace's detector backend."""
    nudenet_weights: LocalPath | None = None
    """`640m.onnx`; null: the network that NudeNet ships."""
    nudenet_px: Pixels = 320
    nudenet_threshold: Annotated[float, Field(ge=0.25, le=1)] = 0.25
    csd_weights: LocalPath | None = None
    inception_weights: LocalPath | None = None
    topiq_weights: LocalPath | None = None
    clip_folder: LocalPath | None = None
    """A CLIP in transformers' layout, e.g. openai/clip-vit-base-patch16."""
    kid_subset_size: Positive = 1000
    """At most; half of the smaller set where that is less."""
    kid_subsets: Several = 100
    per_class: bool | None = None
    """Set distances are means over classes (the authors' FID); null: as adapt.per_class."""


class Params(Block):
    """The whole file."""

    profile: Name
    rho: Ratio
    seed: Seed
    roles: Literal["given", "swapped"] = "given"
    """swapped: the classes that the cases name illegal play the legal ones, and the other way round."""
    workers: Workers
    """Processes side by side on a CPU: the two sides of a cell, or the seeds of a mask."""
    device: Device = "auto"
    compute: Compute = Compute()
    allow_explicit: bool = False
    """Nothing explicit is fetched, read or rendered unless this is true."""
    domains: dict[Name, Domain]
    models: dict[Name, Model]
    cases: dict[Name, Case]
    relearn: Finetuning
    mask: Mask
    uce: UCE
    imma: IMMAOfParams
    methods: dict[Name, dict[str, Any]] = {}
    """Numbers of further registered methods, by their `block`."""
    adapt: Adapt
    generate: Generate
    score: Score

    @model_validator(mode="after")
    def _references(self) -> Params:
        own = {method.block for method in METHODS.values()} - set(type(self).model_fields)
        if unknown := sorted(set(self.methods) - own):
            raise ValueError(f"methods.{unknown[0]} is the block of no registered method; they have {sorted(own)}")
        for name, domain in self.domains.items():
            keys = [f"domains.{name}"] if domain.explicit else []
            keys += [f"domains.{name}.parts.{part}" for part, origin in domain.parts.items() if origin.explicit]
            if keys and not self.allow_explicit:
                raise ValueError(f"{keys[0]} is explicit; set allow_explicit: true to say that you mean it")
        for name, case in self.cases.items():
            if case.domain not in self.domains:
                raise ValueError(f"cases.{name}.domain is {case.domain!r}; domains has {sorted(self.domains)}")
            if case.model not in self.models:
                raise ValueError(f"cases.{name}.model is {case.model!r}; models has {sorted(self.models)}")
        return self

    def arms(self, case: str) -> list[Arm]:
        """The arms of a case in the order of its table."""
        return [Arm.parse(name) for name in self.cases[case].arms]

    @cached_property
    def cells(self) -> list[tuple[str, Arm]]:
        """Every case x arm, in table order."""
        return [(case, arm) for case in self.cases for arm in self.arms(case)]

    @cached_property
    def protected(self) -> list[tuple[str, Arm]]:
        """Every protected model: the arms whose users train, and those that only start from one."""
        return list(dict.fromkeys((case, arm.protected) for case, arm in self.cells))

    def domain_of(self, case: str) -> Domain:
        return self.domains[self.cases[case].domain]

    def adapt_block(self, case: str, arm: Arm | None = None) -> Adapt:
        """How the users of a cell train: `adapt`, with what the case has of its own; not at all before fine-tuning."""
        own = {"steps": self.cases[case].adapt_steps, "lr": self.cases[case].adapt_lr}
        if arm is not None and arm.before:
            own["steps"] = 0
        return self.adapt.model_copy(update={key: value for key, value in own.items() if value is not None})

    def generate_block(self, case: str) -> Generate:
        """Which images are made for a case: `generate`, with what the case has of its own."""
        own = self.cases[case].generate.model_dump(exclude_none=True)
        return self.generate.model_copy(update=own)

    @property
    def score_block(self) -> Score:
        """How images are scored, with what follows from how the users train."""
        per_class = self.adapt.per_class if self.score.per_class is None else self.score.per_class
        return self.score.model_copy(update={"per_class": per_class})

    def simulated_users(self, case: str) -> list[str]:
        """joint, per_side or both: whom the case's masks simulate, and so whose theta_ft they start from."""
        masks = [self.mask_block(case, arm) for arm in self.arms(case) if arm.kind.block == "mask"]
        return sorted({mask.users for mask in masks} or {self.mask.users})

    def mask_block(self, case: str, arm: Arm | None = None) -> Mask:
        """What a case's masks are learned with, of an arm's granularity; the simulated user has the real one's rate.

        An arm that stands for a preset takes it as it is, but for what the profile makes of it.
        """
        found = self.mask
        if arm is not None and arm.kind.preset not in ("", found.preset):
            kept = {key: getattr(found, key) for key in ("of_profile", "diagnostic_seeds", "checkpoint_minutes")}
            found = Mask.model_validate({"preset": arm.kind.preset, **kept})
        if arm is not None and arm.granularity != "tensor":
            found = found.with_(granularity=arm.granularity)
        return found if found.user_lr is not None else found.with_(user_lr=self.adapt_block(case).lr)

    def imma_block(self, case: str) -> IMMA:
        """How a case's model is immunised; the simulated attacker has what is null of the real one: rate and steps."""
        users, own = self.adapt_block(case), self.imma.model_dump()
        inner = users.lr if self.imma.inner_lr is None else self.imma.inner_lr
        outer = 4 * inner if self.imma.outer_lr is None else self.imma.outer_lr
        return IMMA(**{**own, "steps": self.imma.steps or users.steps, "inner_lr": inner, "outer_lr": outer})

    def own_block(self, case: str, block: str) -> dict[str, Any]:
        """The numbers of any other method; a simulated user without a rate has the real one's."""
        own = self.methods.get(block, {})
        return own if own.get("user_lr", 0) is not None else {**own, "user_lr": self.adapt_block(case).lr}


def parse_params(values: Any, source: Path) -> Params:
    """Checked params; every mistake is named by its key, with the value found."""
    return validated(Params, values, source)


def load_params(path: Path = PARAMS) -> Params:
    return parse_params(read_yaml(path), path)
