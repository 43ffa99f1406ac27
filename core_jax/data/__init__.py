"""Training input: random-access sources, Grain pipeline with a position that can be saved."""
