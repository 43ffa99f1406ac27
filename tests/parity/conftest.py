"""Leaves out what is no test: a program of its own, which imports TRL where that is installed."""

collect_ignore = ["trl_preference.py"]
