"""What training costs: the time of a step, and the memory that was allocated at most (paper, Table 8 and Figure 4).

A stage that trains writes a file of them below data/costs, an output of its own: times differ from run to run, and what
follows from the trained weights must not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Meter:
    """Times steps and follows the peak of the memory that torch allocates on a GPU.

    meter = Meter(device)
    for ...:
        with meter.step():
            ...
    meter.record()  # {"device": ..., "steps": n, "median_step_s": ..., "peak_bytes": ...}
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.seconds: list[float] = []
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    @contextmanager
    def step(self) -> Iterator[None]:
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds.append(time.perf_counter() - start)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def record(self) -> dict[str, Any]:
        """Null where nothing was measured: no step was taken, or memory on a CPU."""
        on_gpu = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            "steps": len(self.seconds),
            "median_step_s": statistics.median(self.seconds) if self.seconds else None,
            "peak_bytes": torch.cuda.max_memory_allocated(self.device) if on_gpu else None,
        }
