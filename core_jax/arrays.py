"""Array type aliases shared by every public signature.

The long jaxtyping form (`Float[Array, "B T"]`) is used everywhere: type checkers read it as
`Array`, and the test run checks each annotated shape through beartype.
"""

from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

Params = PyTree
"""A model's parameters: a plain nested dict of arrays."""

__all__ = ["Array", "Bool", "Float", "Int", "Key", "Params", "PyTree", "Shaped"]
