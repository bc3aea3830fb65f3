"""Processes that tests start."""

from __future__ import annotations

import signal


def hear_ctrl_c() -> None:
    """`preexec_fn`: Ctrl-C as a terminal's shell leaves it; what runs these tests in the background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ignore_ctrl_c() -> None:
    """`preexec_fn`: as what is begun in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
