"""What training costs: the time of a step, and the memory that was allocated at most (paper, Table 8 and Figure 4).

A stage that trains writes a file of them below data/costs, an output of its own: times differ from run to run, and what
follows from the trained weights must not.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class AllocatedBytes(TorchDispatchMode):
    """Follows the storages behind every tensor that torch's operations read or return; exact, the same in every run.

    `peak` is the most that was alive at once, with all that was there before and was read. What a kernel needs for
    itself alone is not seen, nor what no operation touched: on a GPU the allocator is asked instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before = self._now = self._most = 0
        self._known: set[int] = set()

    @property
    def peak(self) -> int:
        return self._before + self._most

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in self._unknown((args, kwargs)):
            self._before += storage.nbytes()
            weakref.finalize(storage, self._known.discard, storage._cdata)  # or another at its address were missed
        result = func(*args, **(kwargs or {}))
        for storage in self._unknown(result):
            self._now += storage.nbytes()
            weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self._most = max(self._most, self._now)
        return result

    def _unknown(self, tensors: Any) -> Iterator[torch.UntypedStorage]:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self._known:
                self._known.add(storage._cdata)
                yield storage

    def _freed(self, address: int, n_bytes: int) -> None:
        self._known.discard(address)
        self._now -= n_bytes


class Meter:
    """Times steps, and finds the most memory that tensors take at once.

    meter = Meter(device)
    for ...:
        with meter.step():
            ...
    meter.record()  # {"device": ..., "steps": n, "median_step_s": ..., "peak_bytes": ..., "resumed_at_step": ...}

    On a GPU the peak is the allocator's, over all steps. On a CPU it is that of the second step alone - the optimiser's
    state is there by then - which is slower for being watched, computes the same, and is left out of the times.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.seconds: list[float] = []
        self.steps = 0
        self.resumed_at = 0
        """Of a run that went on from a checkpoint: how many steps an earlier process took, which are not counted."""
        self.peak: int | None = None
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    @contextmanager
    def step(self) -> Iterator[None]:
        watch = AllocatedBytes() if self.device.type == "cpu" and self.steps == 1 else None
        self._wait()
        start = time.perf_counter()
        with watch or nullcontext():
            yield
        self._wait()
        self.steps += 1
        if watch:
            self.peak = watch.peak
        else:
            self.seconds.append(time.perf_counter() - start)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def record(self) -> dict[str, Any]:
        """Null where nothing was measured: no step was taken, or on a CPU no second one."""
        on_gpu = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            "steps": self.steps,
            "resumed_at_step": self.resumed_at,
            "median_step_s": statistics.median(self.seconds) if self.seconds else None,
            "peak_bytes": torch.cuda.max_memory_allocated(self.device) if on_gpu else self.peak,
        }
