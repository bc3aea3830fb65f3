"""A warm start for the stages that need torch: under DVC they are forked from a process that has imported it.

Importing torch and diffusers costs seconds in each of some sixty stages of one `dvc repro`. The first such stage leaves
a server behind that imports the packages - none of this project's own code, so that an edit is always seen - and forks
a process for each later stage, which runs it with the arguments, folder, environment and terminal that DVC gave. A
stage's command and its process die together; the server ends itself after `IDLE_S` without work.

Not where there is a GPU, whose driver does not survive a fork, and not where FREEZEASGUARD_WARM is 0.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import selectors
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

STAGES = ("encode", "reference", "relearn", "protect", "adapt", "generate", "score")
PACKAGES = (
    "pandas",
    "torch",
    "safetensors.torch",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers.scheduling_pndm",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
"""Read when diffusers and transformers are imported."""
IDLE_S = 20.0
SWITCH = "FREEZEASGUARD_WARM"
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def quiet() -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


# --- a stage's command ------------------------------------------------------------------------------


def hand_over() -> None:
    """Have the server run this command's stage, and exit as it did; returns where there is none to do it."""
    stage = sys.orig_argv[2].removeprefix("stages.") if sys.orig_argv[1:2] == ["-m"] else ""
    wanted = stage in STAGES and "DVC_STAGE" in os.environ and os.environ.get(SWITCH) != "0"
    if not wanted or not hasattr(os, "pidfd_open") or _has_gpu():
        return
    job = {"stage": stage, "argv": sys.orig_argv[3:], "folder": os.getcwd(), "environment": dict(os.environ)}
    try:
        address = _address()
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(address))
            except OSError:
                _start(address)  # for the next stage
                return
            socket.send_fds(connection, [b"+"], [0, 1, 2])
            connection.sendall(json.dumps(job).encode() + b"\n")
            answers = connection.makefile()
            if pid := int(answers.readline() or 0):
                _wait(pid, answers)
    except OSError:  # it ended before it took the job, or there is no place for its socket
        return


def _wait(pid: int, answers: Any) -> NoReturn:
    """Until the stage's process has ended; then end alike."""
    for number in PASSED_ON:
        if signal.getsignal(number) != signal.SIG_IGN:  # as in the background, which no Ctrl-C reaches
            signal.signal(number, lambda number, _: os.kill(pid, number))
    try:
        status = answers.readline()
    except OSError:
        status = ""
    if not status:  # the server was killed
        _kill(pid)
        os._exit(1)
    code = os.waitstatus_to_exitcode(int(status))
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _has_gpu() -> bool:
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


def _address() -> Path:
    """The server's socket: one a folder, Python, set of packages and environment. Raises OSError where none is safe."""
    passing = ("_", "SHLVL", "OLDPWD", SWITCH)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DVC_") and k not in passing}
    installed = [(path, os.stat(path).st_mtime_ns) for path in sys.path if path.endswith("-packages")]
    key = json.dumps([os.getcwd(), sys.executable, installed, sorted(environment.items())])
    folder = Path(tempfile.gettempdir()) / f"freezeasguard-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode != 0o40700:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    return folder / hashlib.sha256(key.encode()).hexdigest()[:20]


def _start(address: Path) -> None:
    """Leave a server behind, in a session of its own: it outlives this stage, and no signal to DVC reaches it."""
    import subprocess

    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent.parent)!r}); "
        "from freezeasguard.warm import serve; sys.path.pop(0); serve()"
    )
    nothing = subprocess.DEVNULL
    subprocess.Popen(
        [sys.executable, "-c", code, str(address)],
        cwd="/",  # it stands in no project's way
        start_new_session=True,
        stdin=nothing,
        stdout=nothing,
        stderr=nothing,
    )


# --- the server -------------------------------------------------------------------------------------


def serve() -> None:
    """Import the packages, then fork a process for every stage that asks; ends when idle."""
    from importlib import import_module

    address = Path(sys.argv[1])
    gc.disable()
    quiet()
    for name in PACKAGES:
        import_module(name)
    gc.freeze()
    own = address.with_name(f"{address.name}.{os.getpid()}")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(own))
        listening.listen(64)
        os.replace(own, address)  # of two that started at once, the later is asked
        mine = address.stat().st_ino
        try:
            Server(listening).run()
        finally:
            if address.exists() and address.stat().st_ino == mine:
                address.unlink()


class Server:
    """Which process runs which command's stage."""

    def __init__(self, listening: socket.socket) -> None:
        self.listening = listening
        self.selector = selectors.DefaultSelector()
        self.selector.register(listening, selectors.EVENT_READ)
        self.jobs: dict[int, socket.socket] = {}

    def run(self) -> None:
        while ready := self.selector.select(None if self.jobs else IDLE_S):
            for key, _ in ready:
                if key.fileobj is self.listening:
                    self._accept()
                elif key.data not in self.jobs:  # ended in this round
                    continue
                elif key.fileobj is self.jobs[key.data]:  # the command is gone: so goes the process
                    self.selector.unregister(key.fileobj)
                    _kill(key.data)
                else:
                    self._tell(key.data, key.fd)

    def _accept(self) -> None:
        connection, _ = self.listening.accept()
        try:
            _, files, _, _ = socket.recv_fds(connection, 1, 3)
            job = json.loads(connection.makefile().readline())
        except (OSError, ValueError):  # it died while asking
            connection.close()
            return
        pid = os.fork()
        if not pid:
            _become(job, files)
        try:
            os.setpgid(pid, pid)  # here too: whichever of the two comes first
        except OSError:
            pass
        for file in files:
            os.close(file)
        self.jobs[pid] = connection
        self.selector.register(connection, selectors.EVENT_READ, pid)
        self.selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
        _send(connection, pid)

    def _tell(self, pid: int, file: int) -> None:
        """A stage has ended: say how, and end what it left running."""
        _, status = os.waitpid(pid, 0)
        _kill(pid)
        self.selector.unregister(file)
        os.close(file)
        connection = self.jobs.pop(pid)
        if connection.fileno() in self.selector.get_map():
            self.selector.unregister(connection)
        _send(connection, status)
        connection.close()


def _send(connection: socket.socket, number: int) -> None:
    try:
        connection.sendall(f"{number}\n".encode())
    except OSError:  # the command is gone, as its end of the connection says next
        pass


def _kill(pid: int) -> None:
    """The process and all that it started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _become(job: dict[str, Any], files: list[int]) -> NoReturn:
    """In the forked process: be the stage's command."""
    import runpy
    import traceback

    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the server may not have heard it
        for target, file in enumerate(files):
            os.dup2(file, target)
        os.closerange(3, 256)  # the server's sockets
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update({**job["environment"], SWITCH: "0"})
        sys.argv = ["-m", *job["argv"]]
        sys.orig_argv = [sys.executable, "-m", f"stages.{job['stage']}", *job["argv"]]
        sys.path[0] = job["folder"]
        for name in [name for name in sys.modules if name.partition(".")[0] == "freezeasguard"]:
            del sys.modules[name]  # of the server's day: the stage imports its own
        runpy.run_module(f"stages.{job['stage']}", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
