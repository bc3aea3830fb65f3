"""Learning the mask (paper, section 3 and Algorithm 1)."""
