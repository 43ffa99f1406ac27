"""Entry points: job + preset + typed overrides -> a run. No tensor operation lives here."""
