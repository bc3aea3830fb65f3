"""Running the stages side by side, on one machine or many: DVC's graph on Parsl's workers."""
