"""The DVC stages: `ls stages` is the DAG. Each parses its arguments, calls the library, and writes."""

import gc
import os
import signal
import sys
from pathlib import Path

# A fifth of a start is the collector walking what torch and diffusers import; `commands.run` turns it on again.
gc.disable()

# The library beside this folder, wherever another is installed: a queued experiment runs its own commit's code.
sys.path.insert(0, str(Path(__file__).parent))
from freezeasguard.warm import hand_over  # noqa: E402
from freezeasguard.workers import die_with  # noqa: E402

sys.path.pop(0)

# Before the imports that take seconds:
if "DVC_STAGE" in os.environ:
    # a `dvc repro` that was killed must not leave its stage at work, beside that of the next one
    die_with(os.getppid(), signal.SIGTERM)
if sys.argv[0] == "-m":  # a stage's command
    hand_over()
