"""params.yaml: its blocks, presets and profiles, and what each stage is given of them. Nothing here loads torch."""
