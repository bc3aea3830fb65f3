"""The DVC stages: `ls stages` is the DAG. Each parses its arguments, calls the library, and writes."""

import gc
import sys
from pathlib import Path

# A fifth of a start is the collector walking what torch and diffusers import; `commands.run` turns it on again.
gc.disable()

# The library beside this folder, wherever another is installed: a queued experiment runs its own commit's code.
sys.path.insert(0, str(Path(__file__).parent))
import freezeasguard  # noqa: E402, F401

sys.path.pop(0)
