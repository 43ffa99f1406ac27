"""The reward model: labels of sessions, the model, its fusion into one number, its quality."""
