"""Kept: the share of what full fine-tuning changes that is left under a protection. Light on purpose."""

from __future__ import annotations

LEAST_FALL = 0.02
"""Of the pretrained model's loss: where full fine-tuning lowers it by less, no share of that fall means anything."""


def kept_share(pretrained: float, full: float, own: float, least_fall: float = LEAST_FALL) -> float | None:
    """(pretrained - own) / (pretrained - full): 1 for full fine-tuning, 0 for the pretrained model.

    Of losses, or of scores that fall as images get better. None where full fine-tuning raises the value, or lowers
    it by no more than the share `least_fall` of it.
    """
    fall = pretrained - full
    return (pretrained - own) / fall if fall > least_fall * abs(pretrained) else None
