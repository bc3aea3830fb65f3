"""`freezeasguard bound`: how wide a gap between the sides could any mask of whole tensors open?

Where little is left to train, what is left decides. Many masks are drawn at such a ratio, tilted group by group - a
group is a block and a kind of layer - so that their shares vary; both sides' users train under each, and what they keep
is regressed on the share of each group's weights that is free. If out of sample that explains nothing of the
*difference* of the sides, once their common level is regressed out, the groups give a learner that ranks tensors
nothing to go by. The masks that the regression predicts to be best, and that were never tried, are tried on fresh seeds
beside blind ones.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from freezeasguard.checkpoints import CHECKPOINTS, Pieces
from freezeasguard.files import folder_atomically
from freezeasguard.models.diffusion import stored_tensors
from freezeasguard.models.granularity import n_frozen
from freezeasguard.models.protected import Protected
from freezeasguard.protections.random_freezing import random_frozen
from freezeasguard.reports.beside import BLIND, DRAWN, EXPLAINED, PREDICTED, WIDER
from freezeasguard.reports.findings import interval_text, p_text
from freezeasguard.reports.rendering import write_table
from freezeasguard.seeds import seed_of
from freezeasguard.sides import SIDES
from freezeasguard.users.trials import Trial, Trials, identity, kept_of
from freezeasguard.users.tuning import Task

KINDS: Mapping[str, tuple[str, ...]] = {
    "self attention": ("attn1",),
    "cross attention": ("attn2",),
    "feed forward": ("ff",),
    "time": ("time_emb_proj", "time_embedding"),
    "norm": ("norm", "norm1", "norm2", "norm3", "conv_norm_out"),
    "convolution": ("conv1", "conv2", "conv_shortcut", "conv", "conv_in", "conv_out"),
    "projection": ("proj_in", "proj_out"),
}
"""By the first of these that one of a tensor name's parts is."""
TILT = 1.0
"""SD of the groups' log weights in the draw: at 0 each tensor is as likely as any other."""
N_BEST, FRESH_SEEDS, CANDIDATES = 5, 3, 20_000
FULL_SEEDS = 1 + FRESH_SEEDS
"""Of full fine-tuning, whose mean is what 1 kept stands for: every stream that a mask's users draw from."""
FOLDS, REPEATS, PERMUTATIONS = 10, 5, 200
PENALTIES = np.logspace(-1, 4, 16)


def group_of(name: str) -> str:
    """Block and kind of a diffusers UNet's tensor: `up_blocks.1, cross attention`."""
    parts = name.split(".")
    block = ".".join(parts[:2]) if parts[0] in ("down_blocks", "up_blocks") else parts[0].partition("_block")[0]
    block = block if parts[0].endswith(("_blocks", "_block")) else "ends"
    kind = next((kind for kind, names in KINDS.items() if not set(names).isdisjoint(parts)), "other")
    return f"{block}, {kind}"


def tilted_mask(names: Sequence[str], rho: float, rng: np.random.Generator, tilt: float = TILT) -> frozenset[str]:
    """round(rho N) frozen names: those left free are drawn without replacement, by weights that their groups share."""
    groups = sorted({group_of(name) for name in names})
    weights = dict(zip(groups, rng.normal(0, tilt, len(groups)), strict=True))
    keys = rng.gumbel(size=len(names)) + [weights[group_of(name)] for name in names]  # Gumbel's top k
    order = np.argsort(-keys)
    return frozenset(names[int(i)] for i in order[len(names) - n_frozen(rho, len(names)) :])


def free_shares(masks: Sequence[frozenset[str]], sizes: Mapping[str, int]) -> np.ndarray:
    """[mask, group] share of each group's weights that its mask leaves free; groups by name."""
    names = sorted(sizes)
    groups = sorted({group_of(name) for name in names})
    place = np.array([groups.index(group_of(name)) for name in names])
    weights = np.array([sizes[name] for name in names], float)
    free = np.array([[name not in mask for name in names] for mask in masks]) * weights
    total = np.bincount(place, weights)
    return np.stack([np.bincount(place, row, len(groups)) for row in free]) / total


@dataclass(frozen=True)
class Explained:
    """How much of the sides' difference the groups explain, out of sample."""

    r2: float
    """Mean over repeats; below 0 the mean of the training masks predicts better."""
    p: float
    """Share of permutations of the masks that explain as much or more."""


def residual(gap: np.ndarray, level: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """`gap` less what its line over `level` says, the line fitted at the rows `fitted` alone."""
    slope, intercept = np.polyfit(level[fitted], gap[fitted], 1)
    return gap - slope * level - intercept


def explained(model: Any, x: np.ndarray, gap: np.ndarray, level: np.ndarray, seed: int = 0) -> Explained:
    """Cross-validated R^2 of `model` for the gap with the level regressed out, both fitted within each fold."""
    from sklearn.base import clone
    from sklearn.model_selection import KFold

    def r2(gap: np.ndarray, level: np.ndarray, repeats: int) -> float:
        found = []
        for repeat in range(repeats):
            missed, spread = 0.0, 0.0
            for train, test in KFold(FOLDS, shuffle=True, random_state=seed + repeat).split(x):
                y = residual(gap, level, train)
                missed += float(np.sum((y[test] - clone(model).fit(x[train], y[train]).predict(x[test])) ** 2))
                spread += float(np.sum((y[test] - y[train].mean()) ** 2))
            found.append(1 - missed / spread)
        return float(np.mean(found))

    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(gap)) for _ in range(PERMUTATIONS)]
    own, chance = r2(gap, level, REPEATS), [r2(gap[order], level[order], 1) for order in orders]
    return Explained(own, (1 + sum(value >= own for value in chance)) / (1 + PERMUTATIONS))


def regressions() -> dict[str, Any]:
    """The models by name; scikit-learn's, with their penalty chosen within the training masks."""
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    quadratic = GridSearchCV(KernelRidge(kernel="poly", degree=2, coef0=1), {"alpha": [1.0, 10.0, 100.0, 1000.0]}, cv=5)
    return {
        "linear": make_pipeline(StandardScaler(), RidgeCV(PENALTIES)),
        "quadratic": make_pipeline(StandardScaler(), quadratic),
    }


def bound(task: Task, case: str, rho: float, n_masks: int, out: Path, workers: int) -> Path:
    """Draw, train, regress, try the best on fresh seeds; writes `out`/masks.csv and `out`/bound.md (.csv, .tex)."""
    tensors = stored_tensors(task.model)
    sizes = {name: tensor.numel() for name, tensor in tensors.items()}
    names = sorted(sizes)
    rng = np.random.default_rng(seed_of(task.seed, "bound", case))
    masks = [tilted_mask(names, rho, rng) for _ in range(n_masks)]
    pieces = Pieces(CHECKPOINTS / f"bound-{case}", {"rho": rho, **identity(task, __name__)})
    trials = Trials(task, pieces.path, workers)

    def trial(mask: frozenset[str], stream: int) -> Trial:
        return Trial(Protected("bound", mask), task.config, ("bound", stream))

    full = trials.run({f"full-{stream}": trial(frozenset(), stream) for stream in range(FULL_SEEDS)})
    drawn = trials.run({f"mask-{i}": trial(mask, 0) for i, mask in enumerate(masks)})
    of_full = {side: [run[side] for run in full.values()] for side in SIDES}
    kept = {side: np.array([kept_of([run[side]], of_full[side]) for run in drawn.values()]) for side in SIDES}
    gap, level = kept["legal"] - kept["illegal"], (kept["legal"] + kept["illegal"]) / 2
    x = free_shares(masks, sizes)
    models = regressions()
    found = {name: explained(model, x, gap, level) for name, model in models.items()}

    best = max(found, key=lambda name: found[name].r2)
    chosen = models[best].fit(x, residual(gap, level, np.arange(n_masks)))
    candidates = [tilted_mask(names, rho, rng) for _ in range(CANDIDATES)]
    order = np.argsort(-chosen.predict(free_shares(candidates, sizes)))[:N_BEST]
    draw = torch.Generator().manual_seed(seed_of(task.seed, "bound, blind", case))
    tried = {f"best-{i}": candidates[place] for i, place in enumerate(order)}
    tried |= {f"blind-{i}": random_frozen(names, rho, draw) for i in range(N_BEST)}
    streams = range(1, 1 + FRESH_SEEDS)

    def job(name: str, stream: int) -> str:
        """It tells its mask: another number of masks draws other candidates."""
        return f"{name}-of-{n_masks}-stream-{stream}"

    again = trials.run({job(name, stream): trial(mask, stream) for name, mask in tried.items() for stream in streams})
    fresh = {
        name: {side: kept_of([again[job(name, stream)][side] for stream in streams], of_full[side]) for side in SIDES}
        for name in tried
    }
    with folder_atomically(out) as temporary:
        with (temporary / "masks.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["mask", *(f"kept_{side}" for side in SIDES), "free"])
            lines = [(f"mask-{i}", mask, [kept[side][i] for side in SIDES]) for i, mask in enumerate(masks)]
            lines += [(name, mask, [fresh[name][side] for side in SIDES]) for name, mask in tried.items()]
            for name, mask, values in lines:
                writer.writerow([name, *(f"{value:.5f}" for value in values), " ".join(sorted(set(names) - mask))])
        write_table(
            temporary / "bound", f"What a mask of whole tensors could do: {case}", *table(gap, found, fresh, best, rho)
        )
    pieces.clear()
    return out / "bound.md"


def table(
    gap: np.ndarray, found: Mapping[str, Explained], fresh: Mapping[str, Mapping[str, float]], best: str, rho: float
) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, rows and notes: what the groups explain, and what the masks that they predict to be best do."""
    from scipy.stats import ttest_ind

    header = ["", "n", "Kept, illegal", "Kept, legal", "Gap [95%]", "p"]
    rows = [[DRAWN, str(len(gap)), "", "", f"{gap.mean():+.3f}, SD {gap.std(ddof=1):.3f}", ""]]
    for name, one in found.items():
        rows.append([EXPLAINED.format(name), str(len(gap)), "", "", f"{one.r2:+.2f}", p_text(one.p)])
    gaps: dict[str, list[float]] = {}
    for label, start in ((PREDICTED, "best"), (BLIND, "blind")):
        ones = [kept for name, kept in fresh.items() if name.startswith(start)]
        gaps[start] = [one["legal"] - one["illegal"] for one in ones]
        shares = [f"{np.mean([one[side] for one in ones]):.2f}" for side in SIDES]
        rows.append([label, str(len(ones)), *shares, interval_text(gaps[start], "+.3f"), ""])
    difference = ttest_ind(gaps["best"], gaps["blind"], equal_var=False)
    low, high = difference.confidence_interval()
    wider = float(np.mean(gaps["best"]) - np.mean(gaps["blind"]))
    rows.append([WIDER, "", "", "", f"{wider:+.3f} [{low:+.3f}, {high:+.3f}]", p_text(difference.pvalue)])
    hopeless = all(one.r2 <= 0 for one in found.values())
    said = "No regression explains anything of the sides' difference out of sample. " if hopeless else ""
    notes = [
        f"{rho:.0%} of the tensors frozen. Kept: of the fall of the denoising loss on the adaptation images; 1 is the "
        f"mean of {FULL_SEEDS} runs of full fine-tuning.",
        f"R^2: of the gap with the sides' common level regressed out, {FOLDS} folds {REPEATS} times; p by "
        f"{PERMUTATIONS} permutations. Predicted best: by the {best} regression, of {CANDIDATES:,} masks drawn alike, "
        f"each by {FRESH_SEEDS} fresh users a side; intervals over masks (Student, Welch).",
        f"{said}One pair of classes, one seed of the experiment.",
    ]
    return header, rows, notes
