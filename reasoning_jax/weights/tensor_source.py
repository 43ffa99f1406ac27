"""What a file with named tensors offers to a loader, whatever its format.

Dimension key: none.
"""

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A stored tensor as its header describes it."""

    shape: tuple[int, ...]
    """Dimensions, outermost first."""
    dtype: str
    """Name of the stored dtype in the format's own words, as in 'BF16' or 'Q4_1'."""


@runtime_checkable
class TensorSource(Protocol):
    """Named tensors that are read slice by slice."""

    @property
    def origin(self) -> str:
        """The file or folder, for error messages."""
        ...

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor's shape and dtype by its name; nothing but headers is read for it."""
        ...

    def read(self, name: str, bounds: tuple[slice, ...]) -> np.ndarray:
        """Reads a part of a tensor.

        Args:
          name: a name in `specs`.
          bounds: one slice with start and stop per dimension.

        Returns:
          The part, as a floating-point array.
        """
        ...
