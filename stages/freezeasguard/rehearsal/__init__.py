"""A rehearsal of a profile: what the hub would give, made with random weights, and every stage run over it."""
