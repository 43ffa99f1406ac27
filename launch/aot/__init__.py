"""What a job would need of devices that are not here: compiled ahead of time, measured, judged."""
