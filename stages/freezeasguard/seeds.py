"""Seeds by purpose: one number in params.yaml, and a stream of its own for everyone who draws.

Were it one stream for all, the user who is simulated while a mask is learned would see the very timesteps and noise of
the user who is evaluated later.
"""

from __future__ import annotations

import hashlib


def seed_of(*what: object) -> int:
    """A seed in 0..2^63 of what is drawn and for whom: `seed_of(seed, "adapt", "illegal")`."""
    digest = hashlib.sha256("|".join(map(str, what)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
