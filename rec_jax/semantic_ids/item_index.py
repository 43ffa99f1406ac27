"""The catalogue's semantic IDs: which item has which codes, with collisions resolved.

Dimension key: I items, L code levels (with the extra one, where there is one), P levels before the
extra one, Q queries.
"""

import dataclasses
import functools
import os

import numpy as np

from core_jax.arrays import Int
from core_jax.errors import DataError
from rec_jax.semantic_ids.codebook import (
    array_fingerprint,
    check_fingerprint,
    load_arrays,
    save_arrays,
)
from rec_jax.semantic_ids.residual import CollisionPolicy


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemIndex:
    """Semantic ID of every item; row i belongs to item i."""

    codes: np.ndarray
    """Int32 [I, L], 0 <= codes[:, l] < level_sizes[l]."""
    level_sizes: tuple[int, ...]
    """Codes per level."""
    fingerprint: str
    """What a model depends on: `index_fingerprint` of the three other fields."""
    codebook_fingerprint: str = ""
    """Fingerprint of the codebook behind the codes; empty where there is none."""

    def __post_init__(self) -> None:
        """Checks dtype, shape and range of the codes."""
        _check_codes(self.codes, self.level_sizes)

    @property
    def num_items(self) -> int:
        """I: items in the catalogue."""
        return self.codes.shape[0]

    @property
    def num_levels(self) -> int:
        """L: codes per semantic ID."""
        return self.codes.shape[1]

    @functools.cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Items in the order of their packed codes, and those packed codes."""
        packed_I = _pack(self.codes, self.level_sizes)
        order_I = np.argsort(packed_I, kind="stable")
        return order_I, packed_I[order_I]


def build_item_index(
    codes: Int[np.ndarray, "I P"],
    level_sizes: tuple[int, ...],
    policy: CollisionPolicy,
    popularity: Int[np.ndarray, "I"] | None = None,
    *,
    codebook_fingerprint: str = "",
) -> ItemIndex:
    """Resolves collisions: items whose codes agree on all levels.

    `EXTRA_LEVEL` appends a level whose code numbers the items of equal codes from 0: the most
    popular item first where `popularity` is given, ties and all else by item number. The level
    has as many codes as the largest such group has items. Where no two items collide, there is
    nothing to tell apart, and no level is appended. `SHARE` keeps the codes: several items have
    one ID (`items_of` expands it).

    The paper does not discuss collisions (Deng et al., 2025, arXiv:2502.18965, Section 3.1).

    Args:
      codes: codes of every item, int32.
      level_sizes: codes per level.
      policy: what to do with collisions.
      popularity: interactions per item, of the training data; None: number by item.
      codebook_fingerprint: fingerprint of the codebook that gave the codes.

    Returns:
      The index, with L = P or P + 1 levels.

    Raises:
      DataError: a code is outside its level, or the codes are not int32 [I, P].

    >>> codes = np.array([[0, 1], [1, 1], [0, 1]], np.int32)
    >>> index = build_item_index(codes, (2, 2), CollisionPolicy.EXTRA_LEVEL, np.array([3, 5, 8]))
    >>> index.codes.tolist(), index.level_sizes
    ([[0, 1, 1], [1, 1, 0], [0, 1, 0]], (2, 2, 2))
    """
    _check_codes(codes, level_sizes)
    if policy is CollisionPolicy.EXTRA_LEVEL:
        rank_I = _rank_in_group(_pack(codes, level_sizes), popularity)
        if rank_I.max(initial=0) > 0:
            codes = np.concatenate([codes, rank_I[:, None]], axis=-1)
            level_sizes = (*level_sizes, int(rank_I.max()) + 1)
    return ItemIndex(
        codes=codes,
        level_sizes=level_sizes,
        fingerprint=index_fingerprint(codes, level_sizes, codebook_fingerprint),
        codebook_fingerprint=codebook_fingerprint,
    )


def index_fingerprint(
    codes: Int[np.ndarray, "I L"], level_sizes: tuple[int, ...], codebook_fingerprint: str
) -> str:
    """16 hexadecimal digits of the SHA-256 over codes, level sizes and codebook."""
    facts = {"level_sizes": level_sizes, "codebook": codebook_fingerprint}
    return array_fingerprint((codes,), facts)


def items_of(
    index: ItemIndex,
    codes: Int[np.ndarray, "Q L"],
    popularity: Int[np.ndarray, "I"] | None = None,
) -> list[list[int]]:
    """Items that have the given codes.

    Args:
      index: the catalogue.
      codes: semantic IDs to look up.
      popularity: orders the items of an ID, the most popular first; None: by item number.

    Returns:
      Per query the items, empty where the catalogue has none of that ID.

    >>> codes = np.array([[1], [0], [1]], np.int32)
    >>> index = build_item_index(codes, (3,), CollisionPolicy.SHARE)
    >>> items_of(index, np.array([[1], [2]], np.int32))
    [[0, 2], []]
    >>> items_of(index, np.array([[1]], np.int32), popularity=np.array([4, 0, 9]))
    [[2, 0]]
    """
    _check_codes(codes, index.level_sizes)
    order_I, packed_I = index._sorted
    packed_Q = _pack(codes, index.level_sizes)
    firsts = np.searchsorted(packed_I, packed_Q, side="left")
    lasts = np.searchsorted(packed_I, packed_Q, side="right")
    groups = [order_I[first:last] for first, last in zip(firsts, lasts, strict=True)]
    if popularity is not None:
        groups = [group[np.argsort(-popularity[group], kind="stable")] for group in groups]
    return [group.tolist() for group in groups]


def save_item_index(index: ItemIndex, path: str | os.PathLike[str]) -> None:
    """Writes an index as .npz, complete or not at all."""
    facts = {"level_sizes": index.level_sizes, "codebook": index.codebook_fingerprint}
    save_arrays(path, {"codes": index.codes}, facts, index.fingerprint)


def load_item_index(path: str | os.PathLike[str]) -> ItemIndex:
    """Reads what `save_item_index` wrote.

    Raises:
      CheckpointError: the file is absent, unreadable, or not what was written.
    """
    arrays, facts, fingerprint = load_arrays(path)
    codes, level_sizes = arrays["codes"], tuple(facts["level_sizes"])
    actual = index_fingerprint(codes, level_sizes, facts["codebook"])
    check_fingerprint(fingerprint, actual, f"the content of item index '{path}'")
    return ItemIndex(
        codes=codes,
        level_sizes=level_sizes,
        fingerprint=actual,
        codebook_fingerprint=facts["codebook"],
    )


def _rank_in_group(group_I: np.ndarray, popularity: np.ndarray | None) -> np.ndarray:
    """Place of every item among the items of its group, int32 from 0."""
    num_items = group_I.shape[0]
    popularity_I = np.zeros(num_items, np.int64) if popularity is None else popularity
    order_I = np.lexsort((np.arange(num_items), -popularity_I.astype(np.int64), group_I))
    sorted_I = group_I[order_I]
    rank_I = np.empty(num_items, np.int32)
    rank_I[order_I] = np.arange(num_items) - np.searchsorted(sorted_I, sorted_I, side="left")
    return rank_I


def _pack(codes: np.ndarray, level_sizes: tuple[int, ...]) -> np.ndarray:
    """One number per row of codes, in lexicographic order: sum_l s_l prod_{j > l} K_j."""
    packed = np.zeros(codes.shape[0], np.int64)
    for level, size in enumerate(level_sizes):
        packed = packed * size + codes[:, level]
    return packed


def _check_codes(codes: np.ndarray, level_sizes: tuple[int, ...]) -> None:
    """Raises DataError unless codes are int32 [*, L] within their levels."""
    if codes.dtype != np.int32 or codes.ndim != 2 or codes.shape[1] != len(level_sizes):
        raise DataError(
            f"codes are {codes.dtype} {list(codes.shape)}; for level sizes {level_sizes} they "
            f"must be int32 [items, {len(level_sizes)}]"
        )
    for level, size in enumerate(level_sizes):
        is_outside = (codes[:, level] < 0) | (codes[:, level] >= size)
        if is_outside.any():
            raise DataError(
                f"{is_outside.sum()} codes of level {level} lie outside 0..{size - 1}, the first "
                f"in row {is_outside.argmax()}: {codes[is_outside.argmax(), level]}; "
                "use the codebook that made them"
            )
    if np.prod([float(size) for size in level_sizes]) >= 2.0**63:
        raise DataError(
            f"level sizes {level_sizes} have more than 2**63 combinations; use fewer levels"
        )
