"""On PYTHONPATH of a recorded `dvc repro`: every file of the project that a stage opens goes to a log.

Python imports this module at start-up. The audit hook sees what is opened by Python code, imports included, in forked
children too; files that native code maps by itself (safetensors) are not seen, but lie in folders of other files.
"""

import os
import sys

if _log := os.environ.get("STAGE_AUDIT"):
    _root = os.getcwd() + os.sep
    _file = os.open(f"{_log}/{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _seen = set()
    os.write(_file, (" ".join(sys.orig_argv) + "\n").encode())

    def _record(event, args):
        if event == "open" and isinstance(args[0], str):
            path = os.path.abspath(args[0])
            if path.startswith(_root) and path not in _seen:
                _seen.add(path)
                os.write(_file, (path[len(_root) :] + "\n").encode())

    sys.addaudithook(_record)
