"""Errors that a user can cause, each also the standard library error it refines.

A message names the thing, its value, what was expected and the remedy.
"""

import difflib
from collections.abc import Iterable


class AlignaxError(Exception):
    """Base of every error that Alignax raises on purpose."""


class ConfigError(AlignaxError, ValueError):
    """A configuration value that cannot work."""


class DataError(AlignaxError, ValueError):
    """Input data that breaks the documented schema."""


class CheckpointError(AlignaxError, RuntimeError):
    """A checkpoint that is absent, damaged or of another configuration."""


class StorageError(AlignaxError, OSError):
    """A disk, file or bucket that did not take or give what was asked of it."""


class NonFiniteError(AlignaxError, FloatingPointError):
    """Too many training steps in a row whose loss or gradient was not finite."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Returns a hint that names the nearest known name, or lists all known names.

    Args:
      name: what the user wrote.
      known: the names that would have been accepted.

    Returns:
      A sentence to append to an error message.

    >>> nearest_name("onerec_1c", ["onerec_1b", "demo"])
    "Did you mean 'onerec_1b'?"
    >>> nearest_name("zzz", ["b", "a"])
    'Known: a, b.'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(names)}."
