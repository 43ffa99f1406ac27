"""The sampling engine: prompts in, responses out, with the batch kept full.

The device decodes a chunk of tokens for all rows; between chunks the host looks for stop strings,
takes finished responses out and puts waiting prompts in. All samples of a problem share one
reading of its prompt. A draw depends on the seed, the problem, the sample and the position alone:
not on the order, on the rows beside it, or on where a run was cut off. Another number of rows
compiles other matrix products, whose last bits can tip a draw that lies on a boundary.

Dimension key: B rows, P prompts, T tokens of a prompt, I rows to fill, V vocabulary.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from core_jax.arrays import Array
from core_jax.errors import ConfigError, DataError
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.model.decoding import DecodingWeights
from reasoning_jax.model.kv_cache import KvCache
from reasoning_jax.sampling.config import EngineConfig, SamplingConfig
from reasoning_jax.sampling.rows import (
    NO_TOKEN,
    Filling,
    Rows,
    decode_chunk,
    fill_rows,
    fresh_rows,
    grow_rows,
    read_prompts,
)
from reasoning_jax.sampling.shapes import (
    cache_dtype,
    check_rows,
    grown_slots,
    needed_slots,
    on_every_device,
    pad_prompts,
)
from reasoning_jax.text.joint import first_stop

Decode = Callable[[Sequence[int]], str]
"""Token ids to text; must bear ids that end inside a character."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """One response that is wanted."""

    problem_id: str
    """The problem; requests of the same problem have the same prompt."""
    sample: int
    """Which of its samples."""
    prompt: tuple[int, ...]
    """Token ids of the prompt, at least one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """One response."""

    request: SampleRequest
    """What it answers."""
    token_ids: tuple[int, ...]
    """The response's tokens, an end-of-sequence token included, a stop string not."""
    text: str
    """The response as text, without end-of-sequence token."""
    finish: str
    """"stop": by an end-of-sequence token or a stop string; "length": by the longest length."""


@dataclasses.dataclass
class _Row:
    """What the host knows of a row in use."""

    request: SampleRequest
    tokens: list[int]


@dataclasses.dataclass(frozen=True)
class _Group:
    """Prompts that were read in one go."""

    requests: list[SampleRequest]
    """Those still to be put into rows, in order."""
    indices: dict[str, int]
    """Problem to its place among the prompts."""
    logits: Array
    cache: KvCache


def sample(
    config: DecoderConfig,
    weights: DecodingWeights,
    requests: Sequence[SampleRequest],
    *,
    sampling: SamplingConfig,
    engine: EngineConfig,
    decode: Decode,
    eos_ids: Sequence[int],
    mesh: Mesh | None = None,
) -> Iterator[Completion]:
    """Samples every request, in the order in which they end.

    Args:
      config: architecture and compute.
      weights: from `for_decoding`, on their mesh.
      requests: what is wanted; those of one problem should stand together, so that its prompt is
        read once.
      sampling: temperature, truncation, lengths, stop strings.
      engine: rows, chunks.
      decode: to look for stop strings, and for the text.
      eos_ids: tokens that end a response.
      mesh: where the weights are, if on several devices; rows and prompts are spread over its
        batch axes, key heads over `tensor`. Its devices belong to this process.

    Yields:
      One completion per request.

    Raises:
      DataError: an empty prompt; a prompt that leaves no room in `config.max_positions`.
      ConfigError: responses as long as the context; rows that the mesh does not divide.
    """
    _check(config, requests, sampling)
    check_rows(engine, mesh)
    waiting = list(reversed(requests))
    dtype = cache_dtype(config, engine, mesh)
    eos = on_every_device(np.asarray(list(eos_ids) or [NO_TOKEN - 1], np.int32), mesh)
    in_use: dict[int, _Row] = {}
    rows: Rows | None = None
    group: _Group | None = None
    while waiting or in_use or group is not None:
        while len(in_use) < engine.num_rows and (waiting or group is not None):
            if group is None:
                group = _read_group(config, weights, waiting, engine, dtype, mesh)
            if not in_use:
                rows = None  # a fresh batch starts with as few slots as it needs
            rows, filled = _fill(config, sampling, engine, rows, group, in_use, eos, mesh)
            in_use |= filled
            if not group.requests:
                group = None  # its cache is freed before the next is read
            yield from _take_finished(in_use, rows.is_done, sampling, decode, eos_ids)
        if not in_use:
            continue
        assert rows is not None, "rows in use have a state"
        room = _with_room(rows, in_use, engine, config)
        decoded, drawn = decode_chunk(
            config, sampling, engine.steps_per_chunk, weights, room, eos, mesh
        )
        rows, is_done = decoded, decoded.is_done
        del decoded, room  # a drained batch must not stay beside the next
        for step in np.asarray(drawn):
            for index, row in in_use.items():
                if step[index] != NO_TOKEN:
                    row.tokens.append(int(step[index]))
        yield from _take_finished(in_use, is_done, sampling, decode, eos_ids)


def _check(
    config: DecoderConfig, requests: Sequence[SampleRequest], sampling: SamplingConfig
) -> None:
    """Raises DataError for prompts that cannot be sampled from."""
    for request in requests:
        if not request.prompt:
            raise DataError(f"problem '{request.problem_id}' has an empty prompt")
        if len(request.prompt) >= config.max_positions:
            raise DataError(
                f"the prompt of problem '{request.problem_id}' has {len(request.prompt)} tokens; "
                f"the model's context has {config.max_positions}, which leaves no room for a "
                "response. Shorten the prompt (fewer shots), or leave the problem out"
            )
    if sampling.max_new_tokens >= config.max_positions:
        raise ConfigError(
            f"sampling.max_new_tokens is {sampling.max_new_tokens}, as long as the model's "
            f"context, {config.max_positions}; set it lower"
        )


def _read_group(
    config: DecoderConfig,
    weights: DecodingWeights,
    waiting: list[SampleRequest],
    engine: EngineConfig,
    dtype: jnp.dtype,
    mesh: Mesh | None,
) -> _Group:
    """Takes the next problems' requests from the end of `waiting` and reads their prompts."""
    requests: list[SampleRequest] = []
    prompts: dict[str, tuple[int, ...]] = {}
    while waiting:
        request = waiting[-1]
        if request.problem_id not in prompts and len(prompts) == engine.prompts_per_prefill:
            break
        if prompts.setdefault(request.problem_id, request.prompt) != request.prompt:
            raise DataError(f"problem '{request.problem_id}' is asked for with two prompts")
        requests.append(waiting.pop())
    tokens, lengths = pad_prompts(list(prompts.values()), engine, mesh)
    logits_VP, cache = read_prompts(config, weights, tokens, lengths, dtype, mesh)
    indices = {problem_id: index for index, problem_id in enumerate(prompts)}
    return _Group(requests=requests, indices=indices, logits=logits_VP, cache=cache)


def _fill(
    config: DecoderConfig,
    sampling: SamplingConfig,
    engine: EngineConfig,
    rows: Rows | None,
    group: _Group,
    in_use: dict[int, _Row],
    eos: Array,
    mesh: Mesh | None,
) -> tuple[Rows, dict[int, _Row]]:
    """Puts as many of the group's requests into free rows as there are."""
    free = [index for index in range(engine.num_rows) if index not in in_use]
    taken = group.requests[: len(free)]
    del group.requests[: len(free)]
    num_slots = group.cache.num_slots
    dtype = group.cache.keys[0].dtype
    target = rows or fresh_rows(config, engine.num_rows, num_slots, dtype, mesh)
    if target.cache.num_slots < num_slots:
        target = grow_rows(target, num_slots)
    numbers = np.zeros((6, engine.num_rows), np.uint32)
    numbers[1] = np.resize(free, engine.num_rows)
    for entry, request in enumerate(taken):
        length = len(request.prompt)
        last = min(length + sampling.max_new_tokens, config.max_positions) - 1
        numbers[[0, 2, 3, 4, 5], entry] = (
            group.indices[request.problem_id],
            length,
            last,
            _problem_number(request.problem_id),
            request.sample,
        )
    signed = numbers.astype(np.int32)
    filling = Filling(
        prompts=signed[0],
        rows=signed[1],
        lengths=signed[2],
        last_positions=signed[3],
        problems=numbers[4],
        samples=numbers[5],
        count=np.int32(len(taken)),
    )
    filled, first = fill_rows(
        config,
        sampling,
        target,
        group.logits,
        group.cache,
        on_every_device(filling, mesh),
        eos,
        mesh,
    )
    first_B = np.asarray(first)
    return filled, {
        index: _Row(request, [int(first_B[index])])
        for index, request in zip(free, taken, strict=False)
    }


def _problem_number(problem_id: str) -> int:
    """A 32-bit number of a problem that does not depend on which others there are."""
    return int.from_bytes(hashlib.sha256(problem_id.encode()).digest()[:4], "big")


def _with_room(
    rows: Rows, in_use: dict[int, _Row], engine: EngineConfig, config: DecoderConfig
) -> Rows:
    """Grows the cache so that the next chunk fits."""
    longest = max(len(row.request.prompt) + len(row.tokens) for row in in_use.values())
    needed = needed_slots(config, engine, longest)
    if needed <= rows.cache.num_slots:
        return rows
    return grow_rows(rows, grown_slots(engine, needed))


def _take_finished(
    in_use: dict[int, _Row],
    is_done: Array,
    sampling: SamplingConfig,
    decode: Decode,
    eos_ids: Sequence[int],
) -> Iterator[Completion]:
    """Removes the rows that are finished, and yields what they hold."""
    is_done_B = np.asarray(is_done)
    for index in list(in_use):
        row = in_use[index]
        ended = row.tokens[-1] in eos_ids
        cut = _before_stop(row.tokens, sampling.stop, decode)
        if cut is None and not is_done_B[index]:
            continue
        tokens = row.tokens if cut is None else row.tokens[:cut]
        del in_use[index]
        said = tokens[:-1] if ended and cut is None else tokens
        yield Completion(
            request=row.request,
            token_ids=tuple(tokens),
            text=decode(said),
            finish="stop" if ended or cut is not None else "length",
        )


def _before_stop(tokens: list[int], stop: tuple[str, ...], decode: Decode) -> int | None:
    """How many tokens lie wholly before the first stop string; None without one.

    A token that reaches into the stop string is left out whole, so that the text is always that
    of the tokens.
    """
    if not stop:
        return None
    first = first_stop(decode(tokens), stop)
    if first is None:
        return None
    count = len(tokens)
    while count and len(decode(tokens[:count])) > first:
        count -= 1
    return count
