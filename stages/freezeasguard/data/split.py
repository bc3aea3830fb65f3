"""Mask-learning half, adaptation half, held-out prompts (paper, App. E), with nothing in two of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import folder_atomically
from freezeasguard.reading import read_png, read_table
from freezeasguard.settings.resolve import SplitSettings
from freezeasguard.sides import PARTS, ROLES, SIDES

if TYPE_CHECKING:
    from PIL import Image

HASH_SIDE = 16
"""Perceptual hashes of 16 x 16 bits a channel."""


def perceptual_hashes(images: list[Image.Image]) -> list[str]:
    """A hash an image, equal for images that look the same: structure (dHash) with coarse colour."""
    import imagehash

    return [
        f"{imagehash.dhash(image, HASH_SIDE)}-{imagehash.colorhash(image, 4)}" for image in tqdm(images, desc="hashing")
    ]


def near_duplicate_groups(hashes: list[str]) -> np.ndarray:
    """Group index of each image; images with one perceptual hash share a group."""
    return pd.factorize(np.array(hashes, dtype=object))[0]


def n_mask_learning(n_images: int, wanted: int) -> int:
    """`wanted` images, or half of the class where it has fewer than 1.5 `wanted` (paper, App. E: 100, 150)."""
    return n_images // 2 if n_images < 1.5 * wanted else wanted


def split_class(groups: np.ndarray, settings: SplitSettings, class_name: str, rng: np.random.Generator) -> np.ndarray:
    """The part of each image of one class; a group of near-duplicates never straddles two parts.

    Whole groups are dealt in random order to mask learning, then held-out, then adaptation.
    """
    n_mask = n_mask_learning(len(groups), settings.mask_learning_images)
    n_held = settings.held_out_images
    if n_mask < 1 or len(groups) - n_mask - n_held < 1:
        raise FreezeAsGuardError(
            f"class {class_name!r} has {len(groups)} images; it needs at least "
            f"{2 * (n_held + 1)} to be split into mask-learning, adaptation and {n_held} held-out ones. "
            "Add images, or lower held_out_images of its domain in params.yaml"
        )
    parts = np.full(len(groups), "adaptation", dtype=object)
    order = rng.permutation(np.unique(groups))
    for part, wanted in (("mask_learning", n_mask), ("held_out", n_held)):
        taken = 0
        while taken < wanted and len(order):
            members = groups == order[0]
            parts[members] = part
            taken += int(members.sum())
            order = order[1:]
    return parts


def split(captioned: pd.DataFrame, hashes: list[str], settings: SplitSettings) -> pd.DataFrame:
    """The images with their `part`. Near-duplicates across classes are refused a second place.

    Args:
        captioned: path, class, subject, caption, sha256; hashes: a perceptual hash a row.
    """
    table = captioned.assign(group=near_duplicate_groups(hashes))
    # An image that looks like one of another class would carry that class's data into a second part.
    classes = table.groupby("group")["class"].transform("nunique").to_numpy()
    table = table[classes == 1].sort_values(["class", "sha256"], ignore_index=True)
    pieces = []
    for index, (name, rows) in enumerate(table.groupby("class", sort=True)):
        rng = np.random.default_rng([settings.seed, index])
        parts = split_class(rows["group"].to_numpy(), settings, str(name), rng)
        pieces.append(rows.assign(part=parts))
    result = pd.concat(pieces, ignore_index=True)
    assert_disjoint(result)
    return result


def assert_disjoint(table: pd.DataFrame) -> None:
    """No content hash and no group of near-duplicates in two parts."""
    for key in ("sha256", "group"):
        shared = table.groupby(key)["part"].nunique()
        if n_shared := int(np.sum(shared.to_numpy() > 1)):
            raise FreezeAsGuardError(f"{n_shared} values of {key} lie in two parts of the split")


def assign_sides(
    classes: list[str], illegal: int | list[str], legal: int | list[str], seed: int, roles: str = ROLES[0]
) -> dict[str, str]:
    """The side of each class in use: named classes as they are named, else random ones by the seed.

    Where the roles are swapped, every class changes its side.
    """
    sides = _given_sides(classes, illegal, legal, seed)
    if roles == ROLES[0]:
        return sides
    return {name: SIDES[1 - SIDES.index(side)] for name, side in sides.items()}


def rows_of_sides(table: pd.DataFrame, sides: dict[str, str], learn_legal: list[str]) -> pd.DataFrame:
    """The split's rows of the classes in use, with their `side`.

    Where `learn_legal` names classes, their mask-learning images are the legal side's, instead of its own classes'
    (METHOD, reading 10); no other part of theirs is used.
    """
    if unknown := sorted(set(learn_legal) - set(table["class"])):
        known = ", ".join(sorted(set(table["class"])))
        raise FreezeAsGuardError(f"learn_legal: no class is called {unknown[0]!r}; the domain has {known}")
    if illegal := [name for name in learn_legal if sides.get(name) == "illegal"]:
        raise FreezeAsGuardError(f"learn_legal names the class {illegal[0]!r}, which is illegal; leave it out")
    side = table["class"].map(sides)
    if learn_legal:
        learning = table["part"] == "mask_learning"
        side = side.mask(learning & (side == "legal"))
        side = side.mask(learning & table["class"].isin(learn_legal), "legal")
    return table.assign(side=side).dropna(subset=["side"]).reset_index(drop=True)


def _given_sides(classes: list[str], illegal: int | list[str], legal: int | list[str], seed: int) -> dict[str, str]:
    named = {SIDES[0]: illegal, SIDES[1]: legal}
    sides = {name: side for side, names in named.items() if isinstance(names, list) for name in names}
    if unknown := sorted(set(sides) - set(classes)):
        raise FreezeAsGuardError(f"no class is called {unknown[0]!r}; the domain has {', '.join(sorted(classes))}")
    if isinstance(illegal, list) and isinstance(legal, list) and (both := sorted(set(illegal) & set(legal))):
        raise FreezeAsGuardError(f"class {both[0]!r} is named on both sides of a case")
    drawn = {side: 0 if isinstance(n, list) else n for side, n in named.items()}
    free = [name for name in classes if name not in sides]
    return sides | _draw_sides(free, drawn[SIDES[0]], drawn[SIDES[1]], seed)


def _draw_sides(classes: list[str], n_illegal: int, n_legal: int, seed: int) -> dict[str, str]:
    if n_illegal + n_legal > len(classes):
        raise FreezeAsGuardError(
            f"{n_illegal} illegal + {n_legal} legal classes were asked for, the domain has {len(classes)}"
        )
    order = np.random.default_rng(seed).permutation(sorted(classes))
    sides = [SIDES[0]] * n_illegal + [SIDES[1]] * n_legal
    return {str(name): side for name, side in zip(order, sides, strict=False)}


def split_domain(settings: SplitSettings, captioned: Path, raw: Path, out: Path) -> tuple[pd.DataFrame, int]:
    """Write the split of a domain's captioned images; returns it, and how many were left out as near-duplicates."""
    columns = ("path", "class", "subject", "caption", "sha256")
    table = read_table(captioned / "captions.csv", f"run `dvc repro -f caption@{captioned.name}`", columns)
    images = [read_png(raw / path, f"run `dvc repro -f crawl@{raw.name}`") for path in table["path"]]
    result = split(table, perceptual_hashes(images), settings)
    with folder_atomically(out) as temporary:
        result.to_csv(temporary / "split.csv", index=False)
    return result, len(table) - len(result)


def read_split(folder: Path) -> pd.DataFrame:
    path = folder / "split.csv"
    remedy = f"run `dvc repro -f split@{folder.name}`"
    table = read_table(path, remedy, ("path", "class", "subject", "caption", "sha256", "part"))
    if unknown := sorted(set(table["part"]) - set(PARTS)):
        raise FreezeAsGuardError(f"{path} has parts {unknown}; known are {', '.join(PARTS)}. {remedy.capitalize()}")
    return table
