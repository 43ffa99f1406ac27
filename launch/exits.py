"""Exit codes of every entry point."""

ERROR = 1
"""The run met an error; one line says which."""
USAGE = 2
"""The command line is wrong."""
TOO_LARGE = 3
"""A program does not fit its devices (`launch.compile_check`)."""
CANNOT_COMPILE = 4
"""A program cannot be compiled for its devices (`launch.compile_check`)."""
PREEMPTED = 75
"""A SIGTERM came: saved; the same command goes on from there."""
INTERRUPTED = 130
"""Ctrl-C."""
