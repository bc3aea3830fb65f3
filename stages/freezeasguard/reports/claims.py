"""The paper's quantitative claims beside our figures: claims.yaml fixes what decides each, intervals decide it.

A claim holds where the whole interval clears its bound, does not hold where none of it does, and is not decidable
otherwise; nor is one by a score that full fine-tuning does not better. Claims of a case or an arm that the profile
lacks are told as not run.
"""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Literal

from freezeasguard.arms import Arm
from freezeasguard.reports.measures import percent, read_losses
from freezeasguard.reports.paired import Images, Measured
from freezeasguard.reports.paper_tables import cases_of, cost_case, cost_ratios, read_costs
from freezeasguard.reports.rendering import write_table
from freezeasguard.scores.registry import SCORES, side_score
from freezeasguard.settings.blocks import Block
from freezeasguard.settings.params import Params
from freezeasguard.sides import SIDES

NAME = "claims"
NOT_RUN = "not run in this profile"
EARLY_STEPS = 10
"""Within which the paper sees most of the fall of the loss (App. B)."""
HEADER = ["Claim", "Section", "Paper", "Decided by", "Ours [95% interval]", "Test", "Verdict"]


class Claim(Block):
    """One entry of claims.yaml, which says what its keys mean."""

    id: str
    section: str
    quote: str
    paper: str
    table: int
    column: str | None = None
    test: Literal["fall", "saving", "early_fall", "swing"]
    arm: str = "full"
    against: str = "full"
    minus: tuple[str, str] | None = None
    side: Literal["illegal", "legal"] = "illegal"
    metric: str = ""
    cost: Literal["median_step_s", "peak_bytes"] = "median_step_s"
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> str:
        return f"> {self.at_least:g}%" if self.at_least is not None else f"<= {self.at_most:g}%"


def read_claims() -> list[Claim]:
    from ruamel.yaml import YAML

    text = (resources.files("freezeasguard.reports") / "claims.yaml").read_text()
    return [Claim.model_validate(entry) for entry in YAML(typ="safe").load(text)]


def verdict(claim: Claim, found: Measured) -> str:
    """holds | does not hold | not decidable, by the interval alone."""
    ends = (found.low, found.high)
    if all(map(math.isfinite, ends)):
        clears = [end > claim.at_least if claim.at_least is not None else end <= (claim.at_most or 0) for end in ends]
        if all(clears) or not any(clears):
            return "holds" if all(clears) else "does not hold"
    return f"not decidable with n = {found.n} {found.of}"


def arm_at(params: Params, case: str, wanted: str) -> Arm | None:
    """The case's arm of a method at a freeze ratio, "METHOD@PERCENT"; None where it has none."""
    method, _, percent = wanted.partition("@")
    for arm in params.arms(case):
        plain = arm.method == method and arm.granularity == "tensor" and not (arm.draw or arm.before)
        if plain and (not percent or abs(arm.rho(params.rho) - float(percent) / 100) < 1e-9):
            return arm
    return None


def deciding_score(params: Params, case: str, claim: Claim) -> str:
    """The case's score in the place of the claim's metric, else the one that speaks for the side."""
    names = [name for name in params.domain_of(case).score_names() if SCORES[name].an_image]
    in_place = (name for name in names if SCORES[name].paper_metric == claim.metric)
    return next(in_place, side_score(params.domain_of(case).score_names(), claim.side, params.roles))


def early_fall(losses: list[float]) -> float | None:
    """Percent of the fall from the first step to the mean of the last half that the steps 6 to 10 reached."""
    if len(losses) <= 2 * EARLY_STEPS:
        return None
    half = len(losses) // 2
    start, early = losses[0], sum(losses[EARLY_STEPS // 2 : EARLY_STEPS]) / (EARLY_STEPS - EARLY_STEPS // 2)
    whole = start - sum(losses[half:]) / (len(losses) - half)
    return 100 * (start - early) / whole if whole > 0 else None


def swing(losses: list[float]) -> float | None:
    """Percent of change after the early steps: largest less smallest, over the largest."""
    late = losses[EARLY_STEPS:]
    return 100 * (max(late) - min(late)) / max(late) if late else None


class Decider:
    """Finds each claim's figure in an experiment's files."""

    def __init__(self, params: Params, data: Path) -> None:
        self.params, self.data = params, data
        self.images: dict[str, Images] = {}

    def case_of(self, claim: Claim) -> str | None:
        if claim.table == 8:
            return cost_case(self.params)
        cases = cases_of(self.params, claim.table)
        if claim.column is None:
            return next((case for case in cases.values()), None)
        return cases.get(claim.column)

    def images_of(self, case: str) -> Images:
        return self.images.setdefault(case, Images(self.params, case, self.data))

    def figure(self, claim: Claim, case: str, arms: dict[str, Arm]) -> tuple[str, Measured | None]:
        """What decides the claim, in words, and its figure; None where it was not measured."""
        if claim.test == "saving":
            own, base = (read_costs(self.data, case, arm.name) for arm in (arms[claim.arm], arms["full"]))
            saved = [100 * (1 - ratio) for ratio in cost_ratios(own, base, claim.cost)]
            return claim.cost, Measured.over_users(saved)
        if claim.test in ("early_fall", "swing"):
            statistic = early_fall if claim.test == "early_fall" else swing
            adapted = self.data / "adapted" / case / "full"
            found = [statistic(read_losses(adapted, side)) for side in SIDES]
            return "training loss", Measured.over_users([value for value in found if value is not None])
        name = deciding_score(self.params, case, claim)
        if not SCORES[name].an_image:
            return SCORES[name].label, None  # a distance of sets has no paired difference
        images = self.images_of(case)
        pairs = [(arms[a], arms[b]) for a, b in ((claim.arm, claim.against), *([claim.minus] if claim.minus else []))]
        return SCORES[name].label, images.fall(pairs, claim.side, name)

    def row(self, claim: Claim) -> list[str]:
        told = [f"{claim.id}: {claim.quote}", claim.section, claim.paper]
        case = self.case_of(claim)
        if case is None:
            where = f"Table {claim.table}" + (f", column {claim.column}" if claim.column else "")
            return [*told, f"{where}: no case", "-", claim.bound, NOT_RUN]
        wanted = {"full", claim.arm, claim.against, *(claim.minus or ())}
        arms = {name: arm_at(self.params, case, name) for name in sorted(wanted)}
        if missing := [name for name, arm in arms.items() if arm is None]:
            return [*told, f"{case}: no arm {', '.join(missing)}", "-", claim.bound, NOT_RUN]
        known = {name: arm for name, arm in arms.items() if arm is not None}
        by, found = self.figure(claim, case, known)
        decided = f"{case}, {self._compared(claim, known)}, {by}"
        if found is None:
            return [*told, decided, "-", claim.bound, "not decidable with n = 0 users: not measured"]
        ours = percent(found.value)
        ours += f" [{found.low:+.1f}, {found.high:+.1f}]" if math.isfinite(found.high - found.low) else ""
        silent = claim.test == "fall" and self.images_of(case).no_signal(
            claim.side, deciding_score(self.params, case, claim)
        )
        return [*told, decided, ours, claim.bound, silent or verdict(claim, found)]

    def _compared(self, claim: Claim, arms: dict[str, Arm]) -> str:
        if claim.test in ("early_fall", "swing"):
            return "users of Full FT"
        label = {name: arm.label(self.params.rho) for name, arm in arms.items()}
        text = f"{label[claim.arm]} against {label[claim.against]}"
        text += f" less {label[claim.minus[0]]} against {label[claim.minus[1]]}" if claim.minus else ""
        return text + (f", {claim.side} side" if claim.test == "fall" else "")


def write_claims(params: Params, reports: Path, data: Path) -> Path:
    """reports/tables/claims.md, .csv and .tex; returns the first."""
    decider = Decider(params, data)
    embedded = all(domain.source.startswith("embedded-") for domain in params.domains.values())
    world = (
        "the embedded miniature and its stand-in scores: no verdict on the paper's scale" if embedded else "this run"
    )
    notes = [
        f"Profile {params.profile}, seed {params.seed}, mask preset {params.mask.preset}. Ours: {world}.",
        "What decides each claim was fixed before any run (stages/freezeasguard/reports/claims.yaml). A claim holds "
        "where the whole interval clears its bound, and does not hold where none of it does. Uncorrected for their "
        "number. No signal: by the score that decides, full fine-tuning's images are not better than the pretrained "
        "model's beyond chance, so that none of it can be kept or lost.",
        "Falls of quality: THE bootstrap over class, prompt and image, both arms on the same prompts and noise. Costs "
        "and losses: the mean over users, between the smallest and the largest.",
    ]
    rows = [decider.row(claim) for claim in read_claims()]
    title = "The paper's quantitative claims, and what this run says of them"
    return write_table(reports / "tables" / NAME, title, HEADER, rows, notes)
