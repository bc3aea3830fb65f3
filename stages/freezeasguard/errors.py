"""The one exception type whose message is meant for the person at the terminal."""


class FreezeAsGuardError(ValueError):
    """Bad input. The message names the file or key, the value found, and the remedy."""
