"""The two sides of a case, the parts of its images, and which side plays which role."""

from __future__ import annotations

SIDES = ("illegal", "legal")
FINETUNED_SIDES = {"joint": SIDES, "illegal": ("illegal",), "legal": ("legal",)}
"""The fine-tuned models that `relearn` writes, by file name, with the sides each was trained on."""
PARTS = ("mask_learning", "adaptation", "held_out")
ROLES = ("given", "swapped")
"""swapped: the classes that a case names illegal are the legal ones, and the other way round."""
