"""The two sides of a case, the parts of its images, and which side plays which role."""

from __future__ import annotations

from freezeasguard.data.names import slug

SIDES = ("illegal", "legal")
FINETUNED_SIDES = {"joint": SIDES, "illegal": ("illegal",), "legal": ("legal",)}
"""The fine-tuned models that `relearn` writes, by file name, with the sides each was trained on."""
USERS = {"joint": ("joint",), "per_side": SIDES}
"""Whom a mask simulates, with the files that `relearn` writes for them."""
PARTS = ("mask_learning", "adaptation", "held_out")
ROLES = ("given", "swapped")
"""swapped: the classes that a case names illegal are the legal ones, and the other way round."""


def user_name(side: str, class_name: str | None = None) -> str:
    """Whose weights: the side's, or those of the user of one of its classes; a file below data/adapted/CASE/ARM."""
    return side if class_name is None else f"{side}/{slug(class_name)}"
