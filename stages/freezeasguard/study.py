"""The study: learned masks against every control, on both role assignments and several seeds.

A cell of the tables asks what one mask does in one case. A study asks whether a *kind* of mask earns its
name: the two sides of a case take turns at being the illegal one, because one class may simply be harder to
learn than the other, and every mask is judged after its users have re-adapted, by loss and by the case's own
score. A blind mask does not know the roles; its gap between them, averaged over both, is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from tqdm.auto import tqdm

from freezeasguard.files import read_json, write_json
from freezeasguard.masks.bilevel import LearnedMask, MaskConfig, MaskLearner, learn_without_signal
from freezeasguard.models.diffusion import NoiseSchedule, load_scheduler, load_unet, stored_tensors
from freezeasguard.models.generate import generate_side, prompt_table
from freezeasguard.models.granularity import GRANULARITIES
from freezeasguard.models.latents import CaseData, LatentSet
from freezeasguard.models.protected import Protected, mask_sizes, tensor_shapes
from freezeasguard.protections.heuristics import RULES, heuristic_frozen
from freezeasguard.protections.random_freezing import random_frozen_by_parameters, random_frozen_units
from freezeasguard.protections.rivals import imma_protected, uce_protected
from freezeasguard.scores.registry import SCORES
from freezeasguard.scores.scoring import Extractors, Reference, score_images, score_value
from freezeasguard.settings.params import Finetuning, Params, Study
from freezeasguard.sides import SIDES
from freezeasguard.users.adapt import finetune_config, train_user
from freezeasguard.users.training import changed_tensors, fixed_noise_loss
from freezeasguard.workers import resolve_device, run_side_by_side

ROLES = ("given", "swapped")
"""Which side of the case is illegal: the first of SIDES, or the second."""


@dataclass(frozen=True)
class Candidate:
    """A mask, or an edited model, under study."""

    name: str
    """What made it: full, freezeasguard, random-0, one_shot, zeroed_signal, other_case, a rule, uce, imma."""
    role: str | None
    """The role assignment that it was made for; None: it knows no roles."""
    protected: Protected
    rho: float = 0.0
    illegal_weight: float | None = None
    setting: str = ""
    """Of a swept baseline."""

    @property
    def key(self) -> str:
        weight = "" if self.illegal_weight is None else f"-weight-{100 * self.illegal_weight:g}"
        parts = (self.name, self.protected.granularity, f"{100 * self.rho:g}{weight}", self.role or "any")
        return "-".join(parts) + (f"-{self.setting}" if self.setting else "")


def data_side(role_side: str, role: str) -> str:
    """Whose data plays illegal or legal: the case's own sides, or the other way round."""
    return role_side if role == ROLES[0] else SIDES[1 - SIDES.index(role_side)]


class Workbench:
    """One study's case, models and scratch folder; finished pieces there are taken up again after a kill."""

    def __init__(self, params: Params, study: Study, model: Path, data: Path, scratch: Path) -> None:
        self.params, self.study, self.model, self.root, self.scratch = params, study, model, data, scratch
        self.device = resolve_device(params.device)
        self.data = CaseData.load(data / "latents" / study.case)
        self.schedule = NoiseSchedule.of(load_scheduler(model))
        self.tensors = stored_tensors(model)
        self.shapes = tensor_shapes(self.tensors)
        scratch.mkdir(parents=True, exist_ok=True)

    def generator(self, offset: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.study.seed + offset)

    def train(
        self, unet: torch.nn.Module, protected: Protected, data: LatentSet, block: Finetuning, description: str
    ) -> None:
        config, how = finetune_config(block), {"generator": self.generator(), "description": description}
        train_user(unet, protected, self.schedule, data, config, self.device, **how)

    def side_by_side(self, tasks: Mapping[str, Callable[[Path], None]]) -> dict[str, Path]:
        """Run the tasks whose file is not there yet; a task fills the path it is given. Returns all paths."""
        paths = {name: self.scratch / name for name in tasks}

        def whole(task: Callable[[Path], None], path: Path) -> None:
            partial = path.with_name(f".{path.name}")
            task(partial)
            partial.replace(path)

        waiting = {n: lambda n=n: whole(tasks[n], paths[n]) for n in tasks if not paths[n].is_file()}
        run_side_by_side(waiting, self.params.workers, self.device)
        return paths

    # --- candidates ------------------------------------------------------------------------------

    def users(self, data: CaseData, label: str) -> dict[str, Path]:
        """theta_ft of a simulated user on each side's mask-learning half: only the tensors that moved."""

        def train(side: str, path: Path) -> None:
            unet = load_unet(self.model)
            half = data.select(side, ["mask_learning"])
            self.train(unet, Protected("full"), half, self.params.relearn, f"user {side}")
            torch.save(changed_tensors(unet.to("cpu"), self.tensors), path)

        paths = self.side_by_side(
            {f"user-{label}-{side}.pt": lambda path, side=side: train(side, path) for side in SIDES}
        )
        return dict(zip(SIDES, paths.values(), strict=True))

    def learned(self) -> list[Candidate]:
        """Masks that know the roles: learned ones by granularity, and what a single mask step would freeze."""
        users = self.users(self.data, self.study.case)
        headline = self.study.mask_settings(self.params.rho)[0]
        plans = [
            (kind, granularity, role, rho, weight, self.data, users)
            for kind in ("freezeasguard", *(["one_shot"] if self.study.one_shot else []))
            for granularity in GRANULARITIES
            for role in ROLES
            for rho, weight in self.study.mask_settings(self.params.rho)
            if kind == "freezeasguard" or (rho, weight) == headline
        ]
        if self.study.other_case is not None:
            other = CaseData.load(self.root / "latents" / self.study.other_case)
            of_other = self.users(other, self.study.other_case)
            plans.append(("other_case", "tensor", ROLES[0], *headline, other, of_other))

        def learn(index: int, path: Path) -> None:
            kind, granularity, role, rho, weight, data, users = plans[index]
            config = MaskConfig(**self.params.mask.settings() | {"granularity": granularity, "illegal_weight": weight})
            sides = {side: data.select(data_side(side, role), ["mask_learning"]) for side in SIDES}
            start = {(side,): torch.load(users[data_side(side, role)]) for side in SIDES}
            unet = load_unet(self.model).to(self.device)
            learner = MaskLearner(unet, self.schedule, sides, start, config, rho, self.generator())
            first_step = kind == "one_shot"
            torch.save(
                learner.one_shot() if first_step else learner.learn(f"{granularity} {rho} {role} {weight}"), path
            )

        paths = self.side_by_side({f"mask-{i}.pt": lambda path, i=i: learn(i, path) for i in range(len(plans))})
        found = []
        for (kind, granularity, role, rho, weight, _, _), path in zip(plans, paths.values(), strict=True):
            mask: LearnedMask = torch.load(path, weights_only=False)
            protected = Protected(kind, granularity=granularity, frozen_units=mask.frozen_units(rho))
            # Another case's mask does not know this case's roles.
            found.append(Candidate(kind, None if kind == "other_case" else role, protected, rho, weight))
        return found

    def blind(self, parameter_share: float) -> list[Candidate]:
        """Masks that know no roles: random ones of every kind, rules of thumb, the zeroed signal.

        Args:
            parameter_share: of single weights that the learned tensor masks freeze; that control freezes as many.
        """
        rho, shapes, found = self.params.rho, self.shapes, []

        def add(name: str, protected: Protected) -> None:
            found.append(Candidate(name, None, protected, rho))

        for draw in range(self.study.random_draws):
            for granularity in GRANULARITIES if draw == 0 else GRANULARITIES[:1]:
                units = random_frozen_units(shapes, rho, granularity, self.generator(draw))
                add(f"random-{draw}", Protected("random", granularity=granularity, frozen_units=units))
        by_parameters = random_frozen_by_parameters(shapes, parameter_share, self.generator())
        add("random-parameters", Protected("random", by_parameters))
        for rule in RULES if self.study.rules else ():
            add(rule, Protected(rule, heuristic_frozen(rule, self.tensors, rho, self.generator())))
        config = MaskConfig(**self.params.mask.settings())
        silent = learn_without_signal(shapes, config, rho, self.generator())
        add("zeroed_signal", Protected("zeroed_signal", frozen_units=silent.frozen_units(rho)))
        return found

    def baselines(self) -> list[Candidate]:
        """The swept settings of UCE and IMMA, with the roles as given."""
        case, found = self.params.cases[self.study.case], []
        for config in self.study.uce:
            protected = uce_protected(case, config, "A", self.model, self.data)
            found.append(Candidate("uce", ROLES[0], protected, setting=config.setting()))

        def immunise(index: int, path: Path) -> None:
            config = self.study.imma[index]
            torch.save(imma_protected(config, self.model, self.data, self.study.seed, self.device), path)

        paths = self.side_by_side(
            {f"imma-{i}.pt": lambda path, i=i: immunise(i, path) for i in range(len(self.study.imma))}
        )
        for config, path in zip(self.study.imma, paths.values(), strict=True):
            protected = torch.load(path, weights_only=False)
            found.append(Candidate("imma", ROLES[0], protected, setting=config.setting()))
        return found

    # --- what they are worth ------------------------------------------------------------------------

    def adapt(self, candidates: list[Candidate]) -> dict[tuple[str, str], dict[str, Any]]:
        """(candidate's key, data side) -> the user's loss at fixed noise, and the table of images it then made."""
        prompts = {side: prompt_table(self.data, side, self.params.generate) for side in SIDES}

        def use(candidate: Candidate, side: str, path: Path) -> None:
            unet = load_unet(self.model)
            block = self.params.adapt_block(self.study.case, "pretrained" if candidate.name == "pretrained" else "full")
            own = self.data.select(side, ["adaptation"])
            self.train(unet, candidate.protected, own, block, f"{candidate.key} {side}")
            loss = fixed_noise_loss(unet, self.schedule, own, self.generator(1))
            folder = self.scratch / "images" / candidate.key
            generate_side(
                unet, self.data, prompts[side], self.model, folder, self.params.generate, self.study.seed, candidate.key
            )
            write_json(path, {"fixed_noise_loss": loss})

        names = {(c.key, side): f"used-{c.key}-{side}.json" for c in candidates for side in SIDES}
        self.side_by_side(
            {names[c.key, side]: lambda path, c=c, side=side: use(c, side, path) for c in candidates for side in SIDES}
        )
        return {
            key: {**read_json(self.scratch / name, "run the study again"), "prompts": prompts[key[1]]}
            for key, name in names.items()
        }

    def rows(self, candidates: list[Candidate], scorers: Path) -> list[dict[str, Any]]:
        """A row a candidate and data side: how much it freezes, the user's loss, and every score of the case."""
        used = self.adapt(candidates)
        names = self.params.domain_of(self.study.case).score_names()
        extractors = Extractors(self.params.score, scorers, self.params.workers)
        reference = Reference.from_tensors(
            load_file(self.root / "reference" / self.study.case / "features.safetensors")
        )
        raw = self.root / "raw" / self.params.cases[self.study.case].domain
        rows = []
        for candidate in tqdm(candidates, desc="scoring"):
            folder = self.scratch / "images" / candidate.key
            tables = [used[candidate.key, side]["prompts"] for side in SIDES]
            scored = score_images(
                pd.concat(tables, ignore_index=True), folder, raw, self.data, reference, names, extractors
            )
            for side in SIDES:
                real = reference.of_side(self.data, side)
                mine = scored.take((scored.table["side"] == side).to_numpy())
                rows.append(
                    {
                        "name": candidate.name,
                        "granularity": candidate.protected.granularity,
                        "role": candidate.role,
                        "rho": candidate.rho,
                        "illegal_weight": candidate.illegal_weight,
                        "setting": candidate.setting,
                        "data_side": side,
                        "fixed_noise_loss": used[candidate.key, side]["fixed_noise_loss"],
                        "scores": {n: score_value(mine, real, n) for n in names if SCORES[n].rule != "kernel"},
                        "n_images": len(mine.table),
                        **mask_sizes(candidate.protected, self.shapes),
                    }
                )
        return rows


def run_study(params: Params, name: str, model: Path, data: Path, scorers: Path, scratch: Path, out: Path) -> None:
    """Write `out`: every candidate's rows, and what the study was."""
    study = params.studies[name]
    bench = Workbench(params, study, model, data, scratch)
    candidates = [Candidate("pretrained", None, Protected("full")), Candidate("full", None, Protected("full"))]
    if study.masks:
        learned = bench.learned()
        of_tensors = next(c for c in learned if c.name == "freezeasguard" and c.protected.granularity == "tensor")
        share = float(mask_sizes(of_tensors.protected, bench.shapes)["share_of_parameters_frozen"])
        candidates += [*learned, *bench.blind(share)]
    candidates += bench.baselines()
    rows = bench.rows(candidates, scorers)
    case = params.cases[study.case]
    classes = {side: sorted(set(bench.data.rows(side, ["adaptation"])["class"])) for side in SIDES}
    write_json(
        out,
        {
            "study": study.model_dump(mode="json"),
            "domain": case.domain,
            "classes": classes,
            "scores": params.domain_of(study.case).score_names(),
            "adapt": params.adapt_block(study.case).model_dump(),
            "mask": params.mask.settings(),
            "rows": rows,
        },
    )
