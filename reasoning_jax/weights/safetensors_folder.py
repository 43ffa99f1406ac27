"""Safetensors files of a folder, read slice by slice; nothing is ever unpickled.

A folder holds one file (`model.safetensors`), or several with a table of which tensor lies in
which (`model.safetensors.index.json`). Files are memory-mapped: opening reads their headers only.

Dimension key: none.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from core_jax.errors import DataError
from reasoning_jax.weights.tensor_source import TensorSpec

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
"""Suffixes of weight files that only unpickling, that is running code of their own, can read."""

READABLE = ("F64", "F32", "F16", "BF16")
"""Stored dtypes that parameters are read from."""


class SafetensorsFolder:
    """The tensors of a folder, a `TensorSource`.

    Args:
      folder: where the files lie.
      stem: their name without suffix; "adapter_model" for PEFT's adapters.

    Raises:
      DataError: there are no such files, one is damaged or absent, or the index and the files
        disagree.
    """

    def __init__(self, folder: str | os.PathLike[str], *, stem: str = "model"):
        self._folder = pathlib.Path(folder)
        self._files: dict[str, Any] = {}
        self._specs: dict[str, TensorSpec] = {}
        single = self._folder / f"{stem}.safetensors"
        index = self._folder / f"{stem}.safetensors.index.json"
        if single.is_file():
            self._add_file(single)
        elif index.is_file():
            self._add_indexed(index)
        else:
            raise _no_weights(self._folder, single.name, index.name)

    @property
    def origin(self) -> str:
        """The folder."""
        return str(self._folder)

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Shape and dtype of every tensor, from the headers."""
        return self._specs

    def read(self, name: str, bounds: tuple[slice, ...]) -> np.ndarray:
        """Reads a part of one tensor; bfloat16 comes as `ml_dtypes.bfloat16`."""
        dtype = self._specs[name].dtype
        if dtype not in READABLE:
            raise DataError(
                f"'{self._folder}': '{name}' is stored as {dtype}; parameters are read from "
                f"{', '.join(READABLE)}"
            )
        return np.asarray(self._files[name].get_slice(name)[bounds])

    def _add_file(self, path: pathlib.Path) -> list[str]:
        """Opens a file and takes its header in; returns its tensors' names."""
        try:
            file: Any = safe_open(path, framework="np")
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"'{path}' is not a whole safetensors file ({error}); copy it again"
            ) from error
        names = list(file.keys())
        for name in names:
            part = file.get_slice(name)
            self._files[name] = file
            self._specs[name] = TensorSpec(shape=tuple(part.get_shape()), dtype=part.get_dtype())
        return names

    def _add_indexed(self, index: pathlib.Path) -> None:
        """Opens every file that an index names, and checks that they hold what it says."""
        try:
            expected: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"'{index}' has no JSON table 'weight_map'; copy it again") from error
        names = sorted(set(expected.values()))
        strange = [name for name in names if pathlib.PurePath(name).name != name]
        if strange:
            raise DataError(f"'{index}' names files outside its folder: {', '.join(strange)}")
        absent = [name for name in names if not (self._folder / name).is_file()]
        if absent:
            raise DataError(
                f"'{index}' names files that are not there: {', '.join(absent)}; copy the whole "
                "folder"
            )
        found = {(tensor, name) for name in names for tensor in self._add_file(self._folder / name)}
        differing = found ^ set(expected.items())
        if differing:
            rows = [
                f"'{tensor}' in '{name}' is {'not in the index' if is_found else 'not in the file'}"
                for tensor, name in sorted(differing)
                for is_found in [(tensor, name) in found]
            ]
            raise DataError(f"'{index}' and the files disagree: {'; '.join(rows)}")


def _no_weights(folder: pathlib.Path, single: str, index: str) -> DataError:
    """The error for a folder without the files."""
    if not folder.is_dir():
        return DataError(f"'{folder}' is not a folder; give the one that holds '{single}'")
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        return DataError(
            f"'{folder}' has weights only as pickles ({', '.join(pickled)}), which are never "
            "loaded, since reading one runs code that it brings; get the model's safetensors "
            "files, or convert it where you trust it"
        )
    return DataError(
        f"'{folder}' has neither '{single}' nor '{index}'; give a folder with safetensors files"
    )
