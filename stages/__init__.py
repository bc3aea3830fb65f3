"""The DVC stages: `ls stages` is the DAG. Each parses its arguments, calls the library, and writes."""

import gc

# A fifth of a command's start is the collector walking what torch and diffusers import; `stage.run` turns it on again.
gc.disable()
