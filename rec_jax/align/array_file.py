"""Arrays by name in one file: written all or nothing, read with an error that says what to do.

Dimension key: none.
"""

import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

from core_jax.errors import DataError


def write_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as `.npz`; a file that was cut off never has the name."""

    def write(scratch: pathlib.Path) -> None:
        with scratch.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    replace_file(path, write)


def read_arrays(path: pathlib.Path, *, remedy: str) -> dict[str, np.ndarray]:
    """Reads what `write_arrays` wrote.

    Args:
      path: the file.
      remedy: what the user can do, the end of the message.

    Raises:
      DataError: the file is absent or damaged.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"'{path}' cannot be read ({error}); {remedy}") from error


def replace_file(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    """Lets `write` make a file under another name, then gives it its own."""
    scratch = path.with_name(f".{path.name}.part")
    write(scratch)
    os.replace(scratch, path)
