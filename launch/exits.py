"""Exit codes of every entry point."""

ERROR = 1
"""The run met an error; one line says which."""
USAGE = 2
"""The command line is wrong."""
PREEMPTED = 75
"""A SIGTERM came: saved; the same command goes on from there."""
INTERRUPTED = 130
"""Ctrl-C."""
