"""Problems, few-shot prompts, and trajectories: sampled solutions with their verdicts."""
