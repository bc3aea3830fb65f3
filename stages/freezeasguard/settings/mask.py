"""Mask learning: every decision that the paper leaves open or its code takes otherwise, and the presets of them.

A preset means what it says. A value counts in this order: what is written in the block itself (or given with -S), what
the profile makes of that preset at its size (`of_profile`), the preset, the field's default. `freezeasguard check`
prints each value with where it came from. The readings are those of METHOD.md, section 3.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from freezeasguard.settings.blocks import (
    Block,
    Count,
    NotNegative,
    Positive,
    PositiveFloat,
    Rate,
    Ratio,
    Several,
    Temperature,
)

Preset = Literal["freezeasguard", "annealed", "paper", "official"]

TEMPERATURE = 0.2
"""T of the paper, App. B."""

MASK_PRESETS: dict[str, dict[str, Any]] = {
    # Driven by the task signal. Two users, one a side, whose signals do not cancel; they move as the real user
    # does and re-adapt between mask steps. What a unit is worth is read along the whole path from the users' weights
    # to theta_pre, on the same noise for both sides and on one scale. Sparsity is a constraint that ranks nothing.
    # The mask's optimiser is plain gradient descent: from an almost flat start each logit is then the sum of its
    # unit's normalised signals times a slope that all share at first, so that the final ranking is that of the
    # averaged importances. Adam would turn every signal into its sign and so flatten the ranking.
    "freezeasguard": dict(
        users="per_side",
        mask_steps=100,
        user_steps=1,
        order="user_first",
        signal="user_path",
        common_noise=True,
        logits_init="ratio",
        derivative="exact",
        mask_lr=0.01,
        sparsity="projection",
        sparsity_weight=0.0,
        lambdas="equal",
        normalise="sum",
        lower_loss="sum",
        user_optimizer="adamw",
        user_lr=None,  # the real user's
    ),
    # The paper's text: Algorithm 1, Eq. 5-10, App. B and E. It leaves the sparsity weight open, and the number of
    # mask steps ("sufficient"); both are the authors' code's.
    "paper": dict(
        users="joint",
        mask_steps=406,
        user_steps=10,
        order="user_first",
        signal="local",
        common_noise=False,
        logits_init="negative",
        derivative="as_printed",
        mask_lr=10.0,
        sparsity="penalty",
        sparsity_weight=5e3,
        lambdas="proportional",
        normalise="never",
        lower_loss="sum",
        user_optimizer="sgd",
        user_lr=1e-5,
    ),
    # The authors' published code and scripts.
    "official": dict(
        users="joint",
        mask_steps=406,
        user_steps=4,  # a cycle of 5 batches, the first of which is the mask's
        order="mask_first",
        signal="local",
        common_noise=False,
        logits_init="uniform",
        derivative="exact",
        mask_lr=10.0,
        sparsity="penalty",
        sparsity_weight=5e3,
        lambdas="equal",
        normalise="never",
        lower_loss="mixed",
        user_optimizer="sgd",
        user_lr=1e-5,
        precision="bfloat16",
    ),
}
# freezeasguard with a temperature that falls until the mask is as good as rounded: users re-adapt under the mask that
# will be shipped, and late signals, with it in force, decide on the units at its edge.
MASK_PRESETS["annealed"] = {**MASK_PRESETS["freezeasguard"], "temperature": [TEMPERATURE, TEMPERATURE / 40]}

PRESET_WORDS: dict[str, str] = {
    "freezeasguard": "attribution averaged along the simulated users' way",
    "annealed": "the same, its temperature falling until the mask is hard",
    "paper": "the paper's text",
    "official": "the authors' code",
}
"""What each is, for tables."""


class Mask(Block):
    """A preset and what departs from it; complete once it is checked."""

    preset: Preset = "freezeasguard"
    of_profile: dict[Preset, dict[str, Any]] = {}
    """What a profile's size makes of a preset: {freezeasguard: {mask_steps: 12}}."""
    diagnostic_seeds: Annotated[Count, Field(le=100)] = 1
    """Further runs from other seeds, only to report how far the masks agree."""
    start: Literal["pretrained", "uce"] = "pretrained"
    """The model that is protected: as published (paper), or with the illegal concepts erased first, by UCE's reading A
    and the block `uce` (authors' scripts; their README calls it optional, and so every preset leaves it to you).
    theta_ft is the published model's either way."""
    users: Literal["joint", "per_side"]
    """joint: one user fine-tunes on both sides (paper). per_side: one user a side (our extension)."""
    mask_steps: Positive
    user_steps: Positive
    """Lower steps per mask step; L in Algorithm 1."""
    order: Literal["user_first", "mask_first"]
    """user_first (Algorithm 1) or mask_first (authors' code)."""
    batch_size: Several = 16
    """Images a step over both sides; half of them come from each."""
    mask_batch_size: Positive | None = None
    """Images a side in a mask step; null: half of batch_size, as in a user step."""
    granularity: Literal["tensor", "row", "element"] = "tensor"
    """What one logit decides on: tensor (paper), row or element; an arm's name says it."""
    signal: Literal["local", "path", "user_path"]
    """local: <dL/dtheta, delta> at the mixed weights (Eq. 8). path: averaged along theta_ft -> theta_pre (integrated
    gradients), so that the units' signals add up to L(theta_pre) - L(theta_ft). user_path: averaged along
    mixed -> theta_pre; then those of (1 - m) delta add up to L(theta_pre) - L(mixed). A user who re-adapts under a
    mask trains the mixed weights; theta_ft, in which nothing is frozen, soon is a model that nobody trained."""
    path_points: Positive = 1
    """Points of the path that a mask step averages over."""
    common_noise: bool
    """Both sides of a mask step see the same timesteps and noise: less variance in their difference."""
    temperature: Temperature | Annotated[list[Temperature], Field(min_length=2, max_length=2)] = TEMPERATURE
    """T, or T before the first mask step and after the last one, between which it falls geometrically; mask_lr then
    falls as its square, so that a signal moves w / T as far as ever."""
    logits_init: Literal["negative", "uniform", "ratio"]
    """negative: m near 0 (paper). uniform: U(0, 1) (authors' code). ratio: m = rho, and noise that breaks ties."""
    derivative: Literal["exact", "as_printed"]
    """dm/dw: the true one, or the paper's misprint."""
    mask_optimizer: Literal["sgd", "adam"] = "sgd"
    """sgd (paper) or adam: an adaptive step for each logit."""
    mask_lr: PositiveFloat
    """Step size eta_1 of the mask."""
    sparsity: Literal["penalty", "projection"]
    """penalty: c (mean(m) - rho)^2 (Eq. 6). projection: mean(m) = rho after every step."""
    sparsity_weight: NotNegative
    """c; its gradient is not multiplied by mask_lr, as in the authors' code."""
    lambdas: Literal["proportional", "equal"]
    """proportional to the amounts of data (paper) or equal (authors' code: batch means, 1/2 each)."""
    illegal_weight: Ratio = 0.5
    """lambda_1 where lambdas are equal, and lambda_2 = 1 - lambda_1: more of it mitigates more, and costs more."""
    normalise: Literal["never", "step", "sum"]
    """Bring both sides' alignments to one mean size, so that neither drowns the other: those of each mask step, or
    their sum over all steps."""
    lower_loss: Literal["sum", "mixed"]
    """sum of the two sides' mean losses (Eq. 7) or mixed: one mean over both (authors' code)."""
    user_optimizer: Literal["sgd", "adamw"]
    """sgd (Eq. 9 and 10), or adamw: the real user's, at the rate user_lr (1 - m)."""
    user_lr: Rate | None
    """Learning rate eta_2 of the simulated user; null: that of the case's own users."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """float32, or bfloat16 for logits and delta (authors' code)."""
    checkpoint_minutes: PositiveFloat = 10
    """How often a run leaves its state, to go on from after a kill: 28 GB of Stable Diffusion v1.5 with two users."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        return layered(values)[0] if isinstance(values, dict) else values

    def temperature_at(self, step: int) -> float:
        """T after `step` mask steps."""
        if isinstance(self.temperature, list):
            start, end = self.temperature
            return start * (end / start) ** (step / self.mask_steps)
        return self.temperature

    def mask_lr_at(self, step: int) -> float:
        """eta_1 after `step` mask steps."""
        return self.mask_lr * (self.temperature_at(step) / self.temperature_at(0)) ** 2

    def with_(self, **changes: Any) -> Self:
        """A copy with other values, checked."""
        return type(self).model_validate({**self.model_dump(), **changes})


def layered(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The block with its preset filled in, and by key where each value came from."""
    preset = str(values.get("preset", "freezeasguard"))
    profile = values.get("of_profile")
    of_profile = profile.get(preset) if isinstance(profile, dict) else None
    layers = {
        f"preset {preset}": MASK_PRESETS.get(preset, MASK_PRESETS["freezeasguard"]),
        f"profile, of_profile.{preset}": of_profile if isinstance(of_profile, dict) else {},
        "params.yaml": {key: value for key, value in values.items() if value is not None},
    }
    found: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers.items():
        found |= layer
        origins |= dict.fromkeys(layer, origin)
    return found, origins
