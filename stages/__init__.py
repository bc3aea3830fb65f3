"""The DVC stages: `ls stages` is the DAG. Each parses its arguments, calls the library, and writes."""

import gc
import os
import signal

# A fifth of a command's start is the collector walking what torch and diffusers import; `stage.run` turns it on again.
gc.disable()

if "DVC_STAGE" in os.environ:
    # A `dvc repro` that was killed must not leave its stage at work, beside that of the next one. Set before the
    # imports that take seconds, in which the parent may go.
    from freezeasguard.workers import die_with

    die_with(os.getppid(), signal.SIGTERM)
