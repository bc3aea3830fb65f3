"""Parsl's side of a run: where the workers are, and a task a command.

An executor is a short YAML file: the arguments of Parsl's HighThroughputExecutor, and under `provider` the kind of
provider and its arguments. `executors/` has one for a laptop, for a node with GPUs, and for Slurm.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future
from importlib import resources
from pathlib import Path
from typing import Any

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.running.pipeline import Command
from freezeasguard.running.worker import run_command
from freezeasguard.settings.reading import read_yaml


def executor_names() -> list[str]:
    folder = resources.files("freezeasguard.running") / "executors"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def read_executor(name: str) -> dict[str, Any]:
    """The settings of an executor that ships with the package, or of a YAML file."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if name not in executor_names():
            raise FreezeAsGuardError(
                f"there is no executor {name!r}; choose from {', '.join(executor_names())}, or give a .yaml file"
            )
        path = Path(str(resources.files("freezeasguard.running") / "executors" / f"{name}.yaml"))
    if not path.is_file():
        raise FreezeAsGuardError(f"--executor {path}: there is no such file")
    return read_yaml(path)


def _built(kind: Any, values: dict[str, Any], what: str) -> Any:
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise FreezeAsGuardError(f"{what}: {error}; see Parsl's {kind.__name__}") from error


class Engine:
    """Workers that run commands, until it is closed."""

    def __init__(self, name: str, jobs: int | None, run_folder: Path) -> None:
        """Args: jobs: workers a node, instead of what the executor says; run_folder: for Parsl's own files."""
        import parsl
        from parsl import providers
        from parsl.executors import HighThroughputExecutor
        from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD

        # By this Python, where a virtual environment that is not activated has Parsl's scripts on no path.
        modules = f"{sys.executable} -m parsl.executors.high_throughput"
        own = {
            "interchange_launch_cmd": f"{modules}.interchange".split(),
            "launch_cmd": DEFAULT_LAUNCH_CMD.replace("process_worker_pool.py", f"{modules}.process_worker_pool", 1),
        }
        values = dict(read_executor(name))
        provider = dict(values.pop("provider", {"kind": "LocalProvider"}))
        kind = str(provider.pop("kind", "LocalProvider"))
        if not hasattr(providers, kind):
            raise FreezeAsGuardError(f"executor {name}: provider.kind is {kind!r}, which Parsl does not have")
        retries = int(values.pop("retries", 1))
        if jobs is not None:
            values["max_workers_per_node"] = jobs
        built = _built(getattr(providers, kind), provider, f"executor {name}, provider")
        self.executor = _built(
            HighThroughputExecutor, {"label": "stages", "provider": built, **own, **values}, f"executor {name}"
        )
        places = getattr(built, "max_blocks", 1) * getattr(built, "nodes_per_block", 1)
        self.slots = places * (self.executor.max_workers_per_node or 1)
        """Stages that can be at work at once."""
        config = parsl.Config(
            executors=[self.executor],
            run_dir=str(run_folder),
            retries=retries,  # of a worker that was lost: a stage goes on from its checkpoint
            retry_handler=_lost_alone,
            strategy="none" if kind == "LocalProvider" else "simple",
            initialize_logging=False,
        )
        self.flow = parsl.load(config)
        self._app = parsl.python_app(run_command, data_flow_kernel=self.flow)

    def submit(self, command: Command, log: Path) -> Future[int]:
        return self._app(command.text, command.folder, command.environment, str(log))

    def close(self) -> None:
        """End the workers and what they run."""
        import parsl

        self.flow.cleanup()
        parsl.clear()


def _lost_alone(error: Exception, task: Any) -> float:
    """Only a worker that died is worth another try; a command that failed says so by its exit status."""
    from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

    return 1.0 if isinstance(error, (WorkerLost, ManagerLost)) else float("inf")
