"""Values per token of many responses: packed into rows, computed batch by batch, kept in a file.

Dimension key: B rows, T tokens of a row.
"""

import dataclasses
import enum
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from core_jax.arrays import Params
from core_jax.contrast import check_contrast
from core_jax.data.pipeline import to_device
from core_jax.errors import ConfigError, DataError
from core_jax.mesh import check_batch_divisible
from reasoning_jax.align.contrast_model import log_prob_batch
from reasoning_jax.align.pair_file import Pair
from reasoning_jax.data.packing import PackedBatch, PackedRows, PackingConfig, TokenExample
from reasoning_jax.data.token_values import (
    Key,
    TokenSequence,
    TokenValues,
    TokenValuesWriter,
    matching,
    read_token_values,
)
from reasoning_jax.data.trajectories import Trajectory
from reasoning_jax.model.config import DecoderConfig

ScoreBatch = Callable[[PackedBatch, int], Mapping[str, jax.Array]]
"""A batch on its devices, and how many response tokens a row of it has at most -> by name the
values [B, T] of the targets, at least where they are response tokens."""

_ROUNDED_TO = 16  # response tokens of a row, so that other data seldom compiles anew


class Sides(enum.Enum):
    """Which responses of a pair are scored."""

    BOTH = "both"
    CHOSEN = "chosen"
    REJECTED = "rejected"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """How responses are laid into rows, and rows into batches."""

    batch_size: int = 8
    """Rows of a batch."""
    row_length: int = 1024
    """Tokens of a row: at least those of the longest prompt with its response, and at most the
    model's max_positions."""
    chunk: int = 128
    """Tokens of a row whose logits exist at a time."""

    def __post_init__(self) -> None:
        """Checks every field on its own."""
        for name in ("batch_size", "row_length", "chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rows.{name} is {getattr(self, name)}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """Contrastive scores of responses."""

    betas: tuple[float, ...] = (1.0,)
    """Strengths of contrast, all scored in one pass; the paper's is 1."""
    sides: Sides = Sides.BOTH
    """Which responses of the pairs; the paper weighs the rejected ones alone."""
    rows: RowsConfig = dataclasses.field(default_factory=RowsConfig)
    """Rows and batches."""

    def __post_init__(self) -> None:
        """Checks the strengths."""
        if not self.betas or len(set(self.betas)) < len(self.betas):
            raise ConfigError(
                f"scoring.betas is {self.betas}; give at least one strength, and none twice"
            )
        for beta in self.betas:
            check_contrast(beta)


def responses_of(pairs: Iterable[Pair], sides: Sides = Sides.BOTH) -> list[Trajectory]:
    """The responses of pairs, chosen before rejected; one that several pairs share once."""
    found: list[Trajectory] = []
    for pair in pairs:
        found += [pair.chosen] if sides is not Sides.REJECTED else []
        found += [pair.rejected] if sides is not Sides.CHOSEN else []
    return without_repeats(found)


def without_repeats(trajectories: Iterable[Trajectory]) -> list[Trajectory]:
    """Each problem and sample once, in the order of first appearance.

    Raises:
      DataError: one problem and sample with two token sequences.
    """
    found: dict[Key, Trajectory] = {}
    for one in trajectories:
        first = found.setdefault(one.key, one)
        if first.token_ids != one.token_ids or first.response_start != one.response_start:
            raise DataError(
                f"{one.key} stands for two responses of other tokens; score files of different "
                "samplings in runs of their own"
            )
    return list(found.values())


def check_tokenizer(trajectories: Iterable[Trajectory], fingerprint: str) -> None:
    """Raises DataError unless the token ids are those of a model's tokenizer.

    Args:
      trajectories: what is to be scored.
      fingerprint: of the model's tokenizer.
    """
    for one in trajectories:
        if one.tokenizer != fingerprint:
            raise DataError(
                f"the tokens of {one.key} are of tokenizer '{one.tokenizer}', the model's is "
                f"'{fingerprint}'; score with the model that sampled, or import the text with "
                "this model's tokenizer"
            )


def check_ids(sequences: Iterable[TokenSequence], config: DecoderConfig) -> None:
    """Raises DataError where a sequence has a token that a model has no row for.

    Args:
      sequences: what is to be read.
      config: the model's architecture.
    """
    for one in sequences:
        if max(one.token_ids) >= config.vocab_size:
            raise DataError(
                f"{_key(one)} has token id {max(one.token_ids)}, but the model has "
                f"{config.vocab_size} tokens; the sequence is of another model's tokenizer"
            )


def token_values(
    sequences: Sequence[TokenSequence],
    score: ScoreBatch,
    *,
    config: DecoderConfig,
    rows: RowsConfig,
    mesh: Mesh,
    model: str,
    done: frozenset[Key] = frozenset(),
) -> Iterator[list[TokenValues]]:
    """Values of every token of every response, EOS included where the sequence has one.

    How sequences lie in rows depends on all of them and not on what is done: what goes on after it
    was cut off computes the same numbers, bit for bit.

    Args:
      sequences: prompts with their responses, no two of one key.
      score: computes a batch.
      config: the model's architecture; says which ids there are, and how long a row can be.
      rows: rows and batches.
      mesh: devices over which a batch is split.
      model: fingerprint for `TokenValues.model`.
      done: what need not be computed; batches of it alone are not.

    Yields:
      The values of each batch that are not done. A response without tokens has no values.

    Raises:
      DataError: a sequence longer than a row, or with ids that the model does not have.
      ConfigError: rows longer than the model takes, or a batch that does not split over `mesh`.
    """
    check_batch_divisible(rows.batch_size, 1, mesh)
    _check_sequences(sequences, config, rows)
    scored = [one for one in sequences if _num_response_tokens(one)]
    if not scored:
        return
    packed = PackedRows(
        [TokenExample(token_ids=s.token_ids, response_start=s.response_start) for s in scored],
        PackingConfig(row_length=rows.row_length),
    )
    num_predictions = _most_predictions(packed, rows.row_length)
    waiting: tuple[list[_Place], Mapping[str, jax.Array]] | None = None
    for number, batch in enumerate(packed.in_order(rows.batch_size)):
        first = number * rows.batch_size
        missing = [
            (row, scored[example], place)
            for row in range(min(rows.batch_size, len(packed) - first))
            for example, place in packed.places(first + row)
            if _key(scored[example]) not in done
        ]
        if not missing:
            continue
        values = score(to_device(batch, mesh), num_predictions)
        # The devices compute this batch while the one before it is read.
        if waiting is not None:
            yield _read(*waiting, model)
        waiting = missing, values
    if waiting is not None:
        yield _read(*waiting, model)


def sequence_log_probs(
    config: DecoderConfig,
    params: Params,
    sequences: Sequence[TokenSequence],
    *,
    rows: RowsConfig,
    mesh: Mesh,
    model: str,
) -> dict[Key, TokenValues]:
    """Log-probabilities of every token of every response under one model.

    Args:
      config: architecture and compute.
      params: the model's parameters, with adapters attached or without.
      sequences: prompts with their responses, no two of one key.
      rows: rows and batches.
      mesh: devices over which a batch is split.
      model: fingerprint of the model.

    Returns:
      By (problem_id, sample) the values 'log_prob', in nats.

    Raises:
      DataError, ConfigError: as `token_values`.
    """
    score = log_prob_scorer(config, params, rows=rows, mesh=mesh)
    found = token_values(sequences, score, config=config, rows=rows, mesh=mesh, model=model)
    return {one.key: one for batch in found for one in batch}


def log_prob_scorer(
    config: DecoderConfig, params: Params, *, rows: RowsConfig, mesh: Mesh
) -> ScoreBatch:
    """`log_prob_batch` of one model, for `token_values`."""
    return functools.partial(
        log_prob_batch, config, params, chunk=rows.chunk, mesh=mesh if mesh.size > 1 else None
    )


def write_token_values(
    path: str | os.PathLike[str],
    sequences: Sequence[TokenSequence],
    score: ScoreBatch,
    *,
    config: DecoderConfig,
    rows: RowsConfig,
    mesh: Mesh,
    model: str,
    title: str,
) -> dict[str, Any]:
    """Computes the values that a file lacks, and appends them batch by batch.

    Args:
      path: the file.
      sequences: prompts with their responses, no two of one key.
      score: computes a batch.
      config: the model's architecture.
      rows: rows and batches.
      mesh: devices over which a batch is split.
      model: fingerprint of what computes the values.
      title: of the progress bar.

    Returns:
      Facts: "num_sequences" and "num_response_tokens" in the file, "num_empty" responses without
      a token, which have no values, and "num_tokens" of the file's sequences, prompts included.
      "seconds" and "tokens_per_second" are of this call alone, the time to compile included.

    Raises:
      DataError: the file has values of another model, of other tokens, or of responses that are
        not to be scored; or as `token_values`.
      ConfigError: as `token_values`.
    """
    num_empty = sum(not _num_response_tokens(one) for one in sequences)
    num_tokens, began = 0, time.monotonic()
    with (
        TokenValuesWriter(path, model=model) as writer,
        tqdm(total=len(sequences) - num_empty, desc=title, unit="response") as bar,
    ):
        _check_known(path, writer.done, sequences)
        bar.update(len(writer.done))
        for batch in token_values(
            sequences,
            score,
            config=config,
            rows=rows,
            mesh=mesh,
            model=model,
            done=frozenset(writer.done),
        ):
            writer.write(batch)
            num_tokens += sum(len(one.token_ids) for one in batch)
            seconds = max(time.monotonic() - began, 1e-9)
            bar.set_postfix_str(f"{num_tokens / seconds:.0f} tokens/s", refresh=False)
            bar.update(len(batch))
        num_sequences = len(writer.done)
    seconds = time.monotonic() - began
    return {
        "num_sequences": num_sequences,
        "num_response_tokens": sum(_num_response_tokens(one) for one in sequences),
        "num_empty": num_empty,
        "num_tokens": sum(len(one.token_ids) for one in sequences if _num_response_tokens(one)),
        "seconds": round(seconds, 2),
        "tokens_per_second": round(num_tokens / max(seconds, 1e-9), 1),
    }


_Place = tuple[int, TokenSequence, slice]
"""Row of a batch, a sequence in it, and the places whose targets are its response."""


def _most_predictions(packed: PackedRows, row_length: int) -> int:
    """Response tokens of the row that has most of them, rounded up."""
    most = max(
        sum(place.stop - place.start for _, place in packed.places(row))
        for row in range(len(packed))
    )
    return min(-(-most // _ROUNDED_TO) * _ROUNDED_TO, row_length)


def _read(
    places: Sequence[_Place], values: Mapping[str, jax.Array], model: str
) -> list[TokenValues]:
    """Takes a batch's values off the devices, sequence by sequence."""
    on_host = {name: _shortest(np.asarray(array)) for name, array in values.items()}
    return [
        TokenValues(
            problem_id=one.problem_id,
            sample=one.sample,
            model=model,
            token_ids=tuple(one.token_ids),
            response_start=one.response_start,
            values={name: tuple(array[row, place].tolist()) for name, array in on_host.items()},
        )
        for row, one, place in places
    ]


def _shortest(values: np.ndarray) -> np.ndarray:
    """Float64 that print as few digits as tell the float32 apart: half the size as text."""
    return values.astype(np.str_).astype(np.float64)


def _check_sequences(
    sequences: Sequence[TokenSequence], config: DecoderConfig, rows: RowsConfig
) -> None:
    """Raises DataError for what no row can hold and the model cannot read."""
    keys: set[Key] = set()
    longest = max((len(one.token_ids) for one in sequences), default=0)
    for one in sequences:
        key = _key(one)
        if key in keys:
            raise DataError(f"{key} is to be scored twice; give each response once")
        keys.add(key)
        if len(one.token_ids) > rows.row_length:
            raise DataError(
                f"{key} has {len(one.token_ids)} tokens, more than rows.row_length "
                f"{rows.row_length}; set it to {longest} or more, the longest of all"
            )
    check_ids(sequences, config)


def _check_known(
    path: str | os.PathLike[str], done: set[Key], sequences: Sequence[TokenSequence]
) -> None:
    """Raises DataError where a file that is to be gone on with holds other responses."""
    found = read_token_values(path)
    by_key = {_key(one): one for one in sequences}
    for key in done:
        if key not in by_key:
            raise DataError(
                f"'{path}' holds values of {key}, which is not to be scored; remove the file, or "
                "give the responses that it was begun with"
            )
        matching(found, by_key[key])


def _key(one: TokenSequence) -> Key:
    """What is unique of a sequence."""
    return (one.problem_id, one.sample)


def _num_response_tokens(one: TokenSequence) -> int:
    """Tokens of a response."""
    return len(one.token_ids) - one.response_start
