"""The centroids behind semantic IDs, kept bit for bit, with a fingerprint.

Dimension key: K codes of a level, D embedding dimensions.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import zipfile
from typing import Any

import numpy as np

from core_jax.errors import CheckpointError, ConfigError

_FINGERPRINT_DIGITS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codebook:
    """Centroids of every level, and the settings that made them."""

    centroids: tuple[np.ndarray, ...]
    """Per level, float32 [K, D]."""
    settings: dict[str, Any]
    """JSON-able config the codebook was fitted with; part of the fingerprint."""

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Codes per level."""
        return tuple(centroids.shape[0] for centroids in self.centroids)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the SHA-256 over arrays, sizes and settings."""
        return array_fingerprint(self.centroids, self.settings)


def save_codebook(codebook: Codebook, path: str | os.PathLike[str]) -> None:
    """Writes a codebook as .npz, complete or not at all.

    Args:
      codebook: what to write.
      path: name of the file, replaced where it exists.
    """
    arrays = {f"centroids_{level}": array for level, array in enumerate(codebook.centroids)}
    save_arrays(path, arrays, {"settings": codebook.settings}, codebook.fingerprint)


def load_codebook(path: str | os.PathLike[str]) -> Codebook:
    """Reads what `save_codebook` wrote, bit for bit.

    Args:
      path: the .npz file.

    Returns:
      The codebook.

    Raises:
      CheckpointError: the file is absent, unreadable, or not what was written.
    """
    arrays, facts, fingerprint = load_arrays(path)
    centroids = tuple(arrays[f"centroids_{level}"] for level in range(len(arrays)))
    codebook = Codebook(centroids=centroids, settings=facts["settings"])
    check_fingerprint(fingerprint, codebook.fingerprint, f"the content of codebook '{path}'")
    return codebook


def check_fingerprint(expected: str, actual: str, what: str) -> None:
    """Refuses something that was made with other semantic IDs.

    Args:
      expected: fingerprint that the model (or file) was made with.
      actual: fingerprint of what is at hand.
      what: what is at hand, for the message.

    Raises:
      CheckpointError: the two differ.

    >>> check_fingerprint("0a1b", "0a1b", "the catalogue")
    """
    if expected != actual:
        raise CheckpointError(
            f"{what} has fingerprint {actual}, but {expected} was expected: the semantic IDs are "
            "not those it was made with; use the matching file, or build and train anew"
        )


def array_fingerprint(arrays: tuple[np.ndarray, ...], facts: dict[str, Any]) -> str:
    """Hashes arrays with their dtypes and shapes, and JSON-able facts.

    Args:
      arrays: any arrays, in order.
      facts: what else belongs to the identity.

    Returns:
      16 hexadecimal digits of a SHA-256; one changed bit changes it.

    >>> one = array_fingerprint((np.zeros(2, np.int32),), {})
    >>> one == array_fingerprint((np.zeros(2, np.int32),), {})
    True
    >>> one == array_fingerprint((np.zeros((1, 2), np.int32),), {})
    False
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for array in arrays:
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{little.dtype.str}{little.shape}".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()[:_FINGERPRINT_DIGITS]


def save_arrays(
    path: str | os.PathLike[str],
    arrays: dict[str, np.ndarray],
    facts: dict[str, Any],
    fingerprint: str,
) -> None:
    """Writes arrays, facts (as JSON) and a fingerprint to one .npz, through a temporary file."""
    path = pathlib.Path(path)
    if path.suffix != ".npz":
        raise ConfigError(f"'{path}' must end in .npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    content: dict[str, Any] = {**arrays, "facts": json.dumps(facts), "fingerprint": fingerprint}
    with partial.open("wb") as file:
        np.savez(file, **content)
    partial.replace(path)


def load_arrays(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """Reads what `save_arrays` wrote: arrays, facts, fingerprint."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts, fingerprint = json.loads(str(arrays.pop("facts"))), str(arrays.pop("fingerprint"))
    except FileNotFoundError:
        raise CheckpointError(f"'{path}' does not exist; build the semantic IDs first") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"'{path}' is damaged or of another kind ({error}); build the semantic IDs again"
        ) from error
    return arrays, facts, fingerprint
