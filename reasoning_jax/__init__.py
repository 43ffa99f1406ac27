"""Reasoning track: language models that solve problems, from weights to graded solutions."""
