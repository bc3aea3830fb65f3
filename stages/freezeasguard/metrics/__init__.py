"""Scores: each an extractor class and a pure function on what it extracts (METHOD, section 7)."""
