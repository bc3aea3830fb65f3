"""Where images and captions come from, and how they are divided."""
