"""Which tensors, rows or weights are frozen: their files, their sizes, and what holds them still in training."""
