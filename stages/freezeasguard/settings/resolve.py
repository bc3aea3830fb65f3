"""The stage `settings`: params.yaml with all presets and defaults filled in, one small file a stage and cell.

Every later stage reads its own file alone, and DVC watches that file: what a stage can read of the settings is what
it depends on, a new default or preset re-runs what it changes and nothing else, and the code that filled the values
in needs no watching. Beside the settings the file names the code that the stage stands on (see `settings.code`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from freezeasguard.arms import Arm
from freezeasguard.data.sources.registry import SOURCES
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import fingerprint, folder_atomically, write_json
from freezeasguard.reading import read_json
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.blocks import Block, Seed
from freezeasguard.settings.code import REPORTS, code_of
from freezeasguard.settings.compute import Compute
from freezeasguard.settings.mask import Mask
from freezeasguard.settings.methods import IMMA, UCE
from freezeasguard.settings.params import Caption, Domain, Params, Score
from freezeasguard.settings.users import Adapt, Finetuning, Generate
from freezeasguard.users.registry import ATTACKERS, COMPLIANT

SETTINGS = Path("data/settings")
AnyBlock = TypeVar("AnyBlock", bound=Block)


class CrawlSettings(Block):
    seed: Seed
    domain: Domain
    """Without what only later stages read: captions, the split's numbers, the scores."""


class CaptionSettings(Block):
    caption: Caption | None


class SplitSettings(Block):
    seed: Seed
    mask_learning_images: int
    held_out_images: int


class SurveySettings(Block):
    explicit: bool | list[str]
    """Whether all classes are, or which ones."""


class Resumed(Block):
    """Of a stage whose killed run goes on: what it wrote by other code is no part of the same run."""

    code: str = Field("", exclude=True)
    """Stands for the code that the stage depends on; the stage `settings` writes it beside the settings."""


class EncodeSettings(Resumed):
    seed: Seed
    compute: Compute = Compute()
    roles: str
    illegal: int | list[str]
    legal: int | list[str]
    learn_legal: list[str] = []


class ReferenceSettings(Block):
    seed: Seed
    compute: Compute = Compute()
    scores: list[str]
    score: Score


class RelearnSettings(Resumed):
    seed: Seed
    compute: Compute = Compute()
    users: list[str]
    """joint, per_side or both, as the masks' presets simulate them."""
    finetuning: Finetuning


class ProtectSettings(Resumed):
    seed: Seed
    compute: Compute = Compute()
    arm: str
    rho: float
    mask: Mask | None = None
    uce: UCE | None = None
    imma: IMMA | None = None
    own: dict[str, Any] = {}
    """The block of any other registered method."""
    concepts: list[str] = []
    guide: str = " "


class AdaptSettings(Resumed):
    seed: Seed
    compute: Compute = Compute()
    finetuning: Adapt


class GenerateSettings(Resumed):
    seed: Seed
    compute: Compute = Compute()
    generate: Generate


class ScoreSettings(Block):
    seed: Seed
    compute: Compute = Compute()
    arms: list[str]
    scores: list[str]
    score: Score


def _domain_for_crawl(domain: Domain) -> Domain:
    later = dict.fromkeys(("caption", "explicit", "mask_learning_images", "held_out_images", "scores"), True)
    return Domain.model_validate(domain.model_dump(exclude={**later, "parts": {"__all__": {"explicit"}}}))


def _modules_of_sources(domain: Domain) -> tuple[str, ...]:
    names = {domain.source, *(part.source for part in domain.parts.values())}
    return tuple(sorted(SOURCES[name].import_path for name in names))


def protect_settings(params: Params, case: str, arm: Arm) -> ProtectSettings:
    """Only what the arm's method reads: another block's change makes no new mask."""
    own: dict[str, Any] = {}
    block = arm.kind.block
    if block == "mask":
        own["mask"] = params.mask_block(case, arm)
    if block == "uce" or (block == "mask" and own["mask"].start == "uce"):
        concepts = params.cases[case].concepts if params.roles == "given" else []
        own |= {"uce": params.uce, "concepts": concepts, "guide": params.cases[case].guide}
    elif block == "imma":
        own["imma"] = params.imma_block(case)
    elif block and block != "mask":
        own["own"] = params.own_block(case, block)
    seed = 0 if arm.method == "full" or block == "uce" else params.seed  # nothing is drawn
    return ProtectSettings(seed=seed, compute=params.compute, arm=arm.name, rho=arm.rho(params.rho), **own)


Modules = tuple[str, ...]


def resolved(params: Params) -> Iterator[tuple[str, Block, Modules]]:
    """(file name without suffix, settings, the modules that they name) of every stage that takes any."""
    seed, compute = params.seed, params.compute
    for name, model in params.models.items():
        yield f"fetch/{name}", model, ()
    for name, domain in params.domains.items():
        crawl = CrawlSettings(seed=seed, domain=_domain_for_crawl(domain))
        yield f"crawl/{name}", crawl, _modules_of_sources(domain)
        yield f"caption/{name}", CaptionSettings(caption=domain.caption), ()
        split = {"mask_learning_images": domain.mask_learning_images, "held_out_images": domain.held_out_images}
        yield f"split/{name}", SplitSettings(seed=seed, **split), ()
        yield f"survey/{name}", SurveySettings(explicit=domain.explicit_classes()), ()
    for name, case in params.cases.items():
        scores = list(params.domain_of(name).score_names())
        of_scores = tuple(sorted({type(SCORES[score]).__module__ for score in scores}))
        sides = {"illegal": case.illegal, "legal": case.legal, "learn_legal": case.learn_legal}
        yield f"encode/{name}", EncodeSettings(seed=seed, compute=compute, roles=params.roles, **sides), ()
        yield (
            f"reference/{name}",
            ReferenceSettings(seed=seed, compute=compute, scores=scores, score=params.score_block),
            of_scores,
        )
        users = params.simulated_users(name)
        relearn = RelearnSettings(seed=seed, compute=compute, users=users, finetuning=params.relearn)
        yield f"relearn/{name}", relearn, (ATTACKERS[COMPLIANT],)
        yield f"generate/{name}", GenerateSettings(seed=seed, compute=compute, generate=params.generate_block(name)), ()
        yield (
            f"score/{name}",
            ScoreSettings(seed=seed, compute=compute, arms=case.arms, scores=scores, score=params.score_block),
            of_scores,
        )
    for case, arm in params.protected:
        yield f"protect/{case}-{arm.name}", protect_settings(params, case, arm), (arm.kind.import_path,)
    for case, arm in params.cells:
        block = params.adapt_block(case, arm)
        yield (
            f"adapt/{case}-{arm.name}",
            AdaptSettings(seed=seed, compute=compute, finetuning=block),
            (ATTACKERS[block.attacker],),
        )


def write_settings(params: Params, out: Path = SETTINGS) -> int:
    """Write every stage's file; returns how many."""
    everything = params.model_copy(
        update={"workers": 1, "device": "auto"}  # say nothing of the machine: they change no result
    )
    files = [*resolved(params), *((stage, everything, ()) for stage in REPORTS)]
    with folder_atomically(out) as temporary:
        for name, block, modules in files:
            content = {"settings": block.model_dump(mode="json"), "code": code_of(name.partition("/")[0], modules)}
            # The reports show cases in the order of params.yaml, so that their files keep it.
            write_json(temporary / f"{name}.json", content, sort_keys=name not in REPORTS)
    return len(files)


def read_settings(block: type[AnyBlock], name: str, folder: Path = SETTINGS) -> AnyBlock:
    """The settings of one stage and cell, e.g. `read_settings(AdaptSettings, "adapt/portraits-full")`."""
    path = folder / f"{name}.json"
    if not path.is_file() and (path.parent.is_dir() or folder.is_dir()):
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.json"))) or "none"
        stage, _, key = name.partition("/")
        raise FreezeAsGuardError(f"params.yaml has no {key!r} for the stage {stage}; it has {known}")
    remedy = "run `dvc repro settings`"
    values = read_json(path, remedy, keys=["settings"])
    try:
        found = block.model_validate(values["settings"])
    except ValidationError as error:
        raise FreezeAsGuardError(f"{path} holds no {error.title}, which the stage reads; {remedy}") from None
    return found.model_copy(update={"code": fingerprint(values.get("code"))}) if isinstance(found, Resumed) else found


def read_reported(stage: str, folder: Path = SETTINGS) -> Params:
    """All settings, as the reports need them; `stage` is one of `code.REPORTS`."""
    return read_settings(Params, stage, folder)
