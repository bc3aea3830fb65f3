"""A Stable Diffusion in miniature: its architecture, its generic corpus, and the recipe that trains it."""
