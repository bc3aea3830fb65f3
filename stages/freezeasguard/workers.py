"""Independent pieces of work side by side on a CPU: the two sides of a cell, the seeds of a mask."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from freezeasguard.errors import FreezeAsGuardError


def resolve_device(wanted: str) -> str:
    """ "auto" is cuda where there is one."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise FreezeAsGuardError("device is cuda, but torch sees no GPU; set device to auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def one_thread(device: str) -> None:
    """On a CPU, let torch compute with one thread from here on."""
    import torch

    if device == "cpu":
        torch.set_num_threads(1)


PR_SET_PDEATHSIG = 1
"""Of Linux's <sys/prctl.h>: the signal that a process gets when its parent is gone."""


def die_with(parent: int, number: int) -> None:
    """Send this process the signal `number` once its parent is gone, however that ended: no work goes on unseen."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.kill(os.getpid(), number)

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(number))
        if os.getppid() != parent:  # it went before the line above
            watch()
    else:
        threading.Thread(target=watch, daemon=True).start()


GRACE_S = 10
"""For a task that is to end before its time: it removes what it was writing."""


class _Terminated(BaseException):
    """SIGTERM, on its way up through what the task has to put in order."""


def _unwind(*_: Any) -> None:
    raise _Terminated


def _run(task: Callable[[], None], errors: Any, parent: int) -> None:
    signal.signal(signal.SIGTERM, _unwind)
    die_with(parent, signal.SIGKILL)
    try:
        task()
    except FreezeAsGuardError as error:
        errors.put(str(error))
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except _Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:
        errors.put(traceback.format_exc())
        raise SystemExit(1) from None


def run_side_by_side(tasks: Mapping[str, Callable[[], None]], workers: int, device: str) -> None:
    """Run each task, up to `workers` at a time; a task leaves its result in files.

    Forked processes share what is loaded already, so that torch is imported once a stage. On a CPU each task has one
    torch thread, however many workers there are: a small UNet trains faster so, and what two threads add up may differ
    in its last bit from what one does. On a GPU the tasks run one after another.
    """
    one_thread(device)  # before any fork: a child must not inherit a used thread pool
    if workers == 1 or len(tasks) == 1 or device != "cpu":
        for task in tasks.values():
            task()
        return
    context = multiprocessing.get_context("fork")
    errors = context.Queue()
    waiting = list(tasks.items())
    running: list[Any] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                name, task = waiting.pop(0)
                process = context.Process(target=_run, args=(task, errors, os.getpid()), name=name)
                process.start()
                running.append(process)
            running[0].join(0.2)
            for process in [p for p in running if not p.is_alive()]:
                running.remove(process)
                if process.exitcode:
                    raise FreezeAsGuardError(errors.get(timeout=5) if process.exitcode == 1 else _killed(process))
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join(GRACE_S)
            process.kill()
            process.join()  # or it might still write into a folder that the caller removes


def _killed(process: Any) -> str:
    return (
        f"the process of {process.name!r} was killed (exit code {process.exitcode}); if memory ran out, set workers "
        "to 1 in params.yaml. Run `dvc repro` again: it goes on from the last checkpoint"
    )
