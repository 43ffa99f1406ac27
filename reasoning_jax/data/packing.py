"""Rows of one length out of tokenised examples of many: several to a row, or one.

Dimension key: B rows, T tokens of a row, P places of a row.
"""

import bisect
import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from core_jax.arrays import Array, Int, PyTree, Shaped
from core_jax.errors import ConfigError, DataError

PADDING_SEGMENT = 0
"""Segment id of places without an example; examples count from 1."""

_FIELDS = {
    "tokens": np.int32,
    "segment_ids": np.int32,
    "positions": np.int32,
    "targets": np.int32,
    "loss_mask": np.bool_,
}


class Layout(enum.Enum):
    """How examples are laid into rows."""

    PACKED = "packed"
    """As many to a row as fit."""
    ONE_PER_ROW = "one_per_row"
    """Each in a row of its own."""


class Overlong(enum.Enum):
    """What becomes of an example that is longer than a row; it is never cut."""

    REFUSE = "refuse"
    """It is an error."""
    DROP = "drop"
    """It is left out and counted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingConfig:
    """How examples become rows."""

    row_length: int
    """Tokens of a row; at most the model's max_positions."""
    layout: Layout = Layout.PACKED
    """Several examples to a row, or one."""
    overlong: Overlong = Overlong.REFUSE
    """What becomes of examples longer than a row."""

    def __post_init__(self) -> None:
        """Checks that a row can hold an example."""
        if self.row_length < 2:
            raise ConfigError(
                f"packing.row_length is {self.row_length}; an example has a prompt and a response, "
                "so a row must hold at least 2 tokens"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenExample:
    """A prompt and its response, tokenised together."""

    token_ids: Sequence[int]
    """Prompt, response and whatever belongs to them (BOS, EOS)."""
    response_start: int
    """Index of the response's first token; at least 1, so that something predicts it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """Rows of tokens with what is to be predicted at each place."""

    tokens: PyTree
    """Int32 [B, T]: token ids; the pad id at padding."""
    segment_ids: PyTree
    """Int32 [B, T]: examples of a row, from 1; 0 is padding."""
    positions: PyTree
    """Int32 [B, T]: position of each token in its own example, from 0; 0 at padding."""
    targets: PyTree
    """Int32 [B, T]: the next token of the same example; 0 where there is none."""
    loss_mask: PyTree
    """Bool [B, T]: True where the target is a token of the response, its EOS included."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackingReport:
    """What became of the examples."""

    num_examples: int
    """Examples in the rows."""
    num_overlong: int
    """Examples left out because they are longer than a row."""
    num_rows: int
    """Rows."""
    num_tokens: int
    """Tokens in the rows, padding left out."""
    num_loss_tokens: int
    """Response tokens among them: those that are learnt."""
    row_length: int
    """Places of a row."""

    @property
    def efficiency(self) -> float:
        """Share of places that hold a token."""
        return self.num_tokens / (self.num_rows * self.row_length)


class PackedRows:
    """Random access to rows, as `core_jax.data.pipeline.make_pipeline` reads them.

    A row is a dict of the fields of `PackedBatch`, each [T]; `to_packed_batch` is the pipeline's
    `transform`. Rows are made when they are read: what is held is one copy of the tokens.
    """

    def __init__(self, examples: Sequence[TokenExample], config: PackingConfig, *, pad_id: int = 0):
        """Lays examples into rows, the same for the same examples in the same order.

        Packing is best fit, longest first: each example goes where it leaves the least room, and
        among such rows into the oldest. Examples of equal length keep their order.

        Args:
          examples: what is to be laid out.
          config: length and layout of the rows.
          pad_id: token id of padding.

        Raises:
          DataError: there is no example that fits, one has no prompt or no response, or one is
            longer than a row and `config.overlong` refuses that.
        """
        for number, example in enumerate(examples):
            _check_example(number, example)
        fits = [len(example.token_ids) <= config.row_length for example in examples]
        _check_overlong(examples, fits, config)
        kept = [example for example, fit in zip(examples, fits, strict=True) if fit]
        lengths = [len(example.token_ids) for example in kept]
        self._pad_id = pad_id
        self._row_length = config.row_length
        self._offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._starts = [example.response_start for example in kept]
        self._tokens = np.concatenate([np.asarray(example.token_ids, np.int32) for example in kept])
        if config.layout is Layout.PACKED:
            self._rows = best_fit(lengths, config.row_length)
        else:
            self._rows = [[index] for index in range(len(kept))]
        self.report = PackingReport(
            num_examples=len(kept),
            num_overlong=len(examples) - len(kept),
            num_rows=len(self._rows),
            num_tokens=sum(lengths),
            num_loss_tokens=sum(lengths) - sum(self._starts),
            row_length=config.row_length,
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns one row; see the class."""
        row = self.empty_row()
        start = 0
        for segment, example in enumerate(self._rows[index], start=1):
            tokens = self._tokens[self._offsets[example] : self._offsets[example + 1]]
            response_start, stop = self._starts[example], start + len(tokens)
            row["tokens"][start:stop] = tokens
            row["segment_ids"][start:stop] = segment
            row["positions"][start:stop] = np.arange(len(tokens))
            row["targets"][start : stop - 1] = tokens[1:]
            # The last token of the prompt predicts the first of the response; the last predicts
            # nothing, for what follows it in the row is another example.
            row["loss_mask"][start + response_start - 1 : stop - 1] = True
            start = stop
        return row

    def places(self, index: int) -> list[tuple[int, slice]]:
        """Where a row predicts responses.

        Returns:
          The row's examples in its order: number of the example, among those that were kept, and
          the places whose targets are its response.
        """
        found = []
        start = 0
        for example in self._rows[index]:
            stop = start + int(self._offsets[example + 1] - self._offsets[example])
            found.append((example, slice(start + self._starts[example] - 1, stop - 1)))
            start = stop
        return found

    def empty_row(self) -> dict[str, np.ndarray]:
        """Returns a row of padding: it counts for nothing and fills up a batch."""
        row = {name: np.zeros(self._row_length, dtype) for name, dtype in _FIELDS.items()}
        row["tokens"][:] = self._pad_id
        return row

    def in_order(self, batch_size: int) -> Iterator[PackedBatch]:
        """Yields all rows once, in batches of one shape; the last is filled with empty rows.

        Args:
          batch_size: rows of a batch.
        """
        for first in range(0, len(self), batch_size):
            stop = min(first + batch_size, len(self))
            rows = [self[index] for index in range(first, stop)]
            rows += [self.empty_row()] * (first + batch_size - stop)
            yield to_packed_batch({name: np.stack([row[name] for row in rows]) for name in _FIELDS})


def to_packed_batch(rows: Mapping[str, np.ndarray]) -> PackedBatch:
    """Stacked rows [B, T] by name, as the batch that they are."""
    return PackedBatch(**{name: rows[name] for name in _FIELDS})


def at_places(
    values: Shaped[Array, "B T *dims"], places: Int[Array, "B P"]
) -> Shaped[Array, "B P *dims"]:
    """Values of some places of every row.

    Args:
      values: one per place of a row.
      places: which, in [0, T).

    Returns:
      One per wanted place, in their order.

    >>> import jax.numpy as jnp
    >>> at_places(jnp.asarray([[1, 2, 3], [4, 5, 6]]), jnp.asarray([[2, 0], [1, 1]])).tolist()
    [[3, 1], [5, 5]]
    """
    trailing = (1,) * (values.ndim - 2)
    return jnp.take_along_axis(values, places.reshape(*places.shape, *trailing), axis=1)


def best_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Lays lengths into rows: longest first, each where it leaves the least room.

    Needs at most 11/9 of the fewest rows possible, plus 4 (the bound of best fit decreasing).

    Args:
      lengths: tokens of each example, each at most `row_length`.
      row_length: tokens of a row.

    Returns:
      Indices of the examples of each row.

    >>> best_fit([3, 5, 2, 4, 2], row_length=8)
    [[1, 0], [3, 2, 4]]
    """
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect.bisect_left(rooms, (lengths[index], -1))
        if place == len(rooms):
            room, row = row_length, len(rows)
            rows.append([])
        else:
            room, row = rooms.pop(place)
        rows[row].append(index)
        if room > lengths[index]:
            bisect.insort(rooms, (room - lengths[index], row))
    return rows


def _check_example(number: int, example: TokenExample) -> None:
    """Raises unless there is a prompt and a response."""
    length = len(example.token_ids)
    if not 1 <= example.response_start < length:
        raise DataError(
            f"example {number} of {length} tokens has its response at {example.response_start}; "
            f"expected 1 to {length - 1}: a prompt (or BOS) before it and a token in it. Leave "
            "the example out, or give the prompt a BOS"
        )


def _check_overlong(
    examples: Sequence[TokenExample], fits: Sequence[bool], config: PackingConfig
) -> None:
    """Raises where examples are too long and that is refused, or where none is left."""
    num_overlong = len(fits) - sum(fits)
    if num_overlong and config.overlong is Overlong.REFUSE:
        first = fits.index(False)
        longest = max(len(example.token_ids) for example in examples)
        raise DataError(
            f"example {first} has {len(examples[first].token_ids)} tokens, more than "
            f"packing.row_length {config.row_length}, as have {num_overlong} of {len(fits)} "
            f"examples; set row_length to {longest}, or overlong to 'drop' to leave them out"
        )
    if not any(fits):
        raise DataError(
            f"there is no example to lay into rows of {config.row_length} tokens: {len(fits)} "
            "were given and all are longer; give more, or set packing.row_length higher"
        )
