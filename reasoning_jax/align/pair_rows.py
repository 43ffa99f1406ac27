"""Rows that hold pairs of responses: what preference training reads.

Every response is a segment of its own behind its prompt, so that several pairs share a row and no
work goes to padding. A pair lies in one row. Only response tokens enter losses: what is computed of
each predicted token (its logits above all) is computed for those alone, and from there led back to
one number per token of each response: how pairs are laid into rows changes nothing.

Dimension key: B rows, T tokens of a row, P response tokens of a row, K pairs of a row, U tokens of
a response. Sides: 0 chosen, 1 rejected.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from core_jax.arrays import Array, Float, PyTree
from core_jax.errors import ConfigError, DataError
from reasoning_jax.data.packing import Layout, Overlong, best_fit

SIDES = ("chosen", "rejected")
"""The responses of a pair, in the order in which every array holds them."""

_ROUNDED_TO = 16  # tokens of a response, so that other data seldom compiles anew


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairRowsConfig:
    """How pairs are laid into rows."""

    row_length: int
    """Tokens of a row; a pair needs both its responses with their prompts in one."""
    layout: Layout = Layout.PACKED
    """packed: as many pairs in a row as fit; one_per_row: so that a batch has a fixed number."""
    overlong: Overlong = Overlong.REFUSE
    """What happens to a pair that is longer than a row."""

    def __post_init__(self) -> None:
        """Checks the length."""
        if self.row_length < 4:
            raise ConfigError(
                f"rows.row_length is {self.row_length}; the shortest pair has 4 tokens (a prompt "
                "and a response of one token each, twice)"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenPair:
    """A pair as tokens, with what a loss reads of every response token."""

    token_ids: tuple[Sequence[int], Sequence[int]]
    """Prompt and response, of the chosen and of the rejected side."""
    response_starts: tuple[int, int]
    """Index of each response's first token."""
    reference: tuple[np.ndarray, np.ndarray]
    """Log-probability of each response token under the reference, in nats."""
    weights: tuple[np.ndarray, np.ndarray]
    """Weight of each response token in the loss."""

    def __post_init__(self) -> None:
        """Checks that numbers and tokens belong together."""
        for side, ids, start, reference, weights in zip(
            SIDES,
            self.token_ids,
            self.response_starts,
            self.reference,
            self.weights,
            strict=True,
        ):
            if not 1 <= start < len(ids):
                raise DataError(
                    f"a {side} sequence of {len(ids)} tokens has its response at {start}; expected "
                    f"1 to {len(ids) - 1}: a prompt (or BOS) before it and a token in it"
                )
            if not len(reference) == len(weights) == len(ids) - start:
                raise DataError(
                    f"a {side} response has {len(ids) - start} tokens, {len(reference)} reference "
                    f"log-probabilities and {len(weights)} weights; they must be as many"
                )

    @property
    def length(self) -> int:
        """Tokens of both sequences."""
        return len(self.token_ids[0]) + len(self.token_ids[1])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Rows of pairs."""

    tokens: PyTree
    """Int32 [B, T]."""
    segment_ids: PyTree
    """Int32 [B, T]; one number per sequence, 0 for padding."""
    positions: PyTree
    """Int32 [B, T], from 0 in every sequence."""
    targets: PyTree
    """Int32 [B, T]: the token that follows."""
    predictions: PyTree
    """Int32 [B, P]: where in the row the response tokens of all its pairs are predicted, pair by
    pair and side by side; 0 behind the last one."""
    places: PyTree
    """Int32 [B, K, 2, U]: index in `predictions` of each response token."""
    is_token: PyTree
    """Bool [B, K, 2, U]: whether there is such a token."""
    reference: PyTree
    """Float32 [B, K, 2, U]: its log-probability under the reference."""
    weights: PyTree
    """Float32 [B, K, 2, U]: its weight."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairReport:
    """What became of the pairs."""

    num_pairs: int
    """Pairs in rows."""
    num_overlong: int
    """Pairs left out, being longer than a row."""
    num_rows: int
    """Rows."""
    num_tokens: int
    """Tokens in rows, padding not counted."""
    pairs_per_row: int
    """Most pairs of a row."""
    response_tokens: int
    """Places for the tokens of a response."""
    row_response_tokens: int
    """Places for the response tokens of a row, P."""


_ROW_FIELDS = ("tokens", "segment_ids", "positions", "targets")
_TOKEN_FIELDS = {"places": np.int32, "is_token": np.bool_} | dict.fromkeys(
    ("reference", "weights"), np.float32
)


class PairRows:
    """Pairs laid into rows of one length: a source for `core_jax.data.pipeline`."""

    def __init__(self, pairs: Sequence[TokenPair], config: PairRowsConfig, *, pad_id: int = 0):
        """Lays pairs into rows, the same for the same pairs in the same order.

        Args:
          pairs: what is to be laid out.
          config: length and layout of the rows.
          pad_id: token id of padding.

        Raises:
          DataError: there is no pair that fits, or one is longer than a row and
            `config.overlong` refuses that.
        """
        fits = [pair.length <= config.row_length for pair in pairs]
        _check_overlong(pairs, fits, config)
        self._pairs = [pair for pair, fit in zip(pairs, fits, strict=True) if fit]
        lengths = [pair.length for pair in self._pairs]
        if config.layout is Layout.PACKED:
            self._rows = best_fit(lengths, config.row_length)
        else:
            self._rows = [[index] for index in range(len(lengths))]
        self._pad_id, self._row_length = pad_id, config.row_length
        sizes = [[len(side) for side in pair.reference] for pair in self._pairs]
        longest = max(map(max, sizes))
        most = max(sum(sum(sizes[number]) for number in row) for row in self._rows)
        self.report = PairReport(
            num_pairs=len(self._pairs),
            num_overlong=len(pairs) - len(self._pairs),
            num_rows=len(self._rows),
            num_tokens=sum(lengths),
            pairs_per_row=max(map(len, self._rows)),
            response_tokens=self._rounded(longest),
            row_response_tokens=self._rounded(most),
        )

    def __len__(self) -> int:
        return len(self._rows)

    def _rounded(self, num_tokens: int) -> int:
        """A multiple, but no more than a row has."""
        return min(-(-num_tokens // _ROUNDED_TO) * _ROUNDED_TO, self._row_length)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns one row: the fields of `PairBatch` without B."""
        row = self.empty_row()
        start, segment, first = 0, 0, 0
        for slot, number in enumerate(self._rows[index]):
            pair = self._pairs[number]
            for side, ids in enumerate(pair.token_ids):
                segment += 1
                stop = start + len(ids)
                row["tokens"][start:stop] = ids
                row["segment_ids"][start:stop] = segment
                row["positions"][start:stop] = np.arange(len(ids))
                row["targets"][start : stop - 1] = ids[1:]
                size = len(ids) - pair.response_starts[side]
                # A token is predicted where the one before it stands.
                row["predictions"][first : first + size] = np.arange(stop - 1 - size, stop - 1)
                row["places"][slot, side, :size] = np.arange(first, first + size)
                row["is_token"][slot, side, :size] = True
                row["reference"][slot, side, :size] = pair.reference[side]
                row["weights"][slot, side, :size] = pair.weights[side]
                start, first = stop, first + size
        return row

    def empty_row(self) -> dict[str, np.ndarray]:
        """Returns a row without pairs: it counts for nothing and fills up a batch."""
        row = {name: np.zeros(self._row_length, np.int32) for name in _ROW_FIELDS}
        row["tokens"][:] = self._pad_id
        row["predictions"] = np.zeros(self.report.row_response_tokens, np.int32)
        shape = (self.report.pairs_per_row, len(SIDES), self.report.response_tokens)
        return row | {name: np.zeros(shape, dtype) for name, dtype in _TOKEN_FIELDS.items()}

    def in_order(self, batch_size: int) -> Iterator[PairBatch]:
        """Yields all rows once, in batches of one shape; the last is filled with empty rows.

        Args:
          batch_size: rows of a batch.
        """
        for first in range(0, len(self), batch_size):
            stop = min(first + batch_size, len(self))
            rows = [self[index] for index in range(first, stop)]
            rows += [self.empty_row()] * (first + batch_size - stop)
            yield to_pair_batch({name: np.stack([row[name] for row in rows]) for name in rows[0]})


def to_pair_batch(rows: Mapping[str, np.ndarray]) -> PairBatch:
    """Stacked rows [B, ...] by name, as the batch that they are."""
    return PairBatch(**rows)


def by_pair(values: Float[Array, "B P"], batch: PairBatch) -> Float[Array, "B K 2 U"]:
    """Numbers of the rows' response tokens, as those of the pairs.

    Args:
      values: one per response token of a row, in the order of `batch.predictions`.
      batch: says which of them belong to which pair.

    Returns:
      One per response token; arbitrary where `batch.is_token` is false.
    """
    flat = batch.places.reshape(batch.places.shape[0], -1)
    return jnp.take_along_axis(values, flat, axis=1).reshape(batch.places.shape)


def _check_overlong(
    pairs: Sequence[TokenPair], fits: Sequence[bool], config: PairRowsConfig
) -> None:
    """Raises where pairs are too long and that is refused, or where none is left."""
    num_overlong = len(fits) - sum(fits)
    if num_overlong and config.overlong is Overlong.REFUSE:
        longest = max(pair.length for pair in pairs)
        raise DataError(
            f"{num_overlong} of {len(fits)} pairs have more tokens than rows.row_length "
            f"{config.row_length}, the longest {longest}; set row_length to {longest}, or "
            "rows.overlong to 'drop' to leave them out"
        )
    if not any(fits):
        raise DataError(
            f"there is no pair to lay into rows of {config.row_length} tokens: {len(fits)} were "
            "given and all are longer; give more, or set rows.row_length higher"
        )
