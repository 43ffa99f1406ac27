"""The rows that are decoded side by side: their state on the device, and the jitted programs.

Each program takes the mesh on which weights and rows lie, None for the default device, and leaves
its results where the next program takes them: rows and prompts over the batch axes, key heads over
`tensor`.

Dimension key: B rows, P prompts, T tokens of a prompt, I rows to fill, C steps of a chunk,
V vocabulary.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core_jax.arrays import Array, Float, Int, Key, PyTree
from core_jax.mesh import BATCH_AXES, batch_sharding
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.model.decoding import DecodingWeights, decode_step, prefill
from reasoning_jax.model.kv_cache import KvCache, empty_cache, grow_cache, insert_rows
from reasoning_jax.model.shardings import CACHE_SPEC
from reasoning_jax.sampling.choice import choose_tokens
from reasoning_jax.sampling.config import SamplingConfig

NO_TOKEN = -1
"""What a finished row gives."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Where every row stands."""

    cache: KvCache
    """Keys and values of the tokens before the last."""
    tokens: PyTree
    """Int32 [B]: the last token, not yet in the cache."""
    positions: PyTree
    """Int32 [B]: its position."""
    last_positions: PyTree
    """Int32 [B]: position of the last token that the row may get."""
    keys: PyTree
    """Key [B]: of the row's draws; each position folds its number in."""
    is_done: PyTree
    """Bool [B]: whether the row is finished, or empty."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Filling:
    """Which rows get which prompts. All arrays have I = B entries, of which `count` count."""

    prompts: PyTree
    """Int32 [I]: prompt of the prefilled group."""
    rows: PyTree
    """Int32 [I]: distinct rows."""
    lengths: PyTree
    """Int32 [I]: tokens of the prompt."""
    last_positions: PyTree
    """Int32 [I]: see `Rows`."""
    problems: PyTree
    """Uint32 [I]: number of the problem, folded into the seed's key."""
    samples: PyTree
    """Uint32 [I]: number of the sample, folded in next."""
    count: PyTree
    """Int32 scalar."""


def empty_rows(config: DecoderConfig, num_rows: int, num_slots: int, dtype: jnp.dtype) -> Rows:
    """Rows without anything in them.

    Args:
      config: the architecture.
      num_rows: rows, B.
      num_slots: tokens that a row can hold.
      dtype: of the cache.
    """
    zeros = functools.partial(jnp.zeros, (num_rows,), jnp.int32)
    return Rows(
        cache=empty_cache(config, num_rows, num_slots, dtype),
        tokens=zeros(),
        positions=zeros(),
        last_positions=zeros(),
        keys=jax.random.split(jax.random.key(0), num_rows),
        is_done=jnp.ones((num_rows,), bool),
    )


def row_shardings(rows: Rows, mesh: Mesh) -> Rows:
    """Where rows, or their shapes, are on a mesh."""
    cache = jax.tree.map(lambda _: NamedSharding(mesh, CACHE_SPEC), rows.cache)
    spread = jax.tree.map(lambda _: batch_sharding(mesh), rows)
    return dataclasses.replace(spread, cache=cache)


def fresh_rows(
    config: DecoderConfig, num_rows: int, num_slots: int, dtype: jnp.dtype, mesh: Mesh | None
) -> Rows:
    """`empty_rows`, made where they are to be: no device could hold the cache of all."""
    make = functools.partial(empty_rows, config, num_rows, num_slots, dtype)
    if mesh is None:
        return make()
    return jax.jit(make, out_shardings=row_shardings(jax.eval_shape(make), mesh))()


def grow_rows(rows: Rows, num_slots: int) -> Rows:
    """The same rows with room for `num_slots` tokens each.

    Args:
      rows: given up by the caller: its cache is deleted part by part.
      num_slots: at least as many as there are.
    """
    cache = grow_cache(rows.cache, num_slots, delete=True)
    return dataclasses.replace(rows, cache=cache)


@functools.partial(jax.jit, static_argnames=("config", "dtype", "mesh"))
def read_prompts(
    config: DecoderConfig,
    weights: DecodingWeights,
    tokens: Int[Array, "P T"],
    lengths: Int[Array, "P"],
    dtype: jnp.dtype,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "V P"], KvCache]:
    """`prefill`, compiled."""
    logits_VP, cache = prefill(config, weights, tokens, lengths, dtype, mesh)
    if mesh is None:
        return logits_VP, cache
    return jax.lax.with_sharding_constraint(
        (logits_VP, cache),
        (
            NamedSharding(mesh, PartitionSpec(None, BATCH_AXES)),
            jax.tree.map(lambda _: NamedSharding(mesh, CACHE_SPEC), cache),
        ),
    )


@functools.partial(jax.jit, static_argnames=("config", "sampling", "mesh"), donate_argnames="rows")
def fill_rows(
    config: DecoderConfig,
    sampling: SamplingConfig,
    rows: Rows,
    logits: Float[Array, "V P"],
    prefilled: KvCache,
    filling: Filling,
    eos_ids: Int[Array, "E"],
    mesh: Mesh | None = None,
) -> tuple[Rows, Int[Array, "B"]]:
    """Puts prompts into rows and draws the first token of each.

    Returns:
      The rows, and the drawn token of each row, `NO_TOKEN` where nothing was filled.
    """
    num_rows = rows.tokens.shape[0]
    base = jax.random.key(sampling.seed)
    keys_I = jax.vmap(
        lambda problem, sample: jax.random.fold_in(jax.random.fold_in(base, problem), sample)
    )(filling.problems, filling.samples)
    first_I = _draw(sampling, logits[:, filling.prompts], keys_I, filling.lengths)
    counts_I = jnp.arange(num_rows) < filling.count
    target_I = jnp.where(counts_I, filling.rows, num_rows)  # out of bounds: dropped

    def put(old: Array, new: Array) -> Array:
        return old.at[target_I].set(new, mode="drop")

    is_last_I = first_I[:, None] == eos_ids[None]
    is_done_I = jnp.any(is_last_I, axis=1) | (filling.lengths >= filling.last_positions)
    filled = Rows(
        cache=insert_rows(
            rows.cache, prefilled, filling.prompts, filling.rows, filling.count, mesh
        ),
        tokens=put(rows.tokens, first_I),
        positions=put(rows.positions, filling.lengths),
        last_positions=put(rows.last_positions, filling.last_positions),
        keys=put(rows.keys, keys_I),
        is_done=put(rows.is_done, is_done_I),
    )
    return _spread(filled, mesh), put(jnp.full((num_rows,), NO_TOKEN, jnp.int32), first_I)


@functools.partial(
    jax.jit, static_argnames=("config", "sampling", "num_steps", "mesh"), donate_argnames="rows"
)
def decode_chunk(
    config: DecoderConfig,
    sampling: SamplingConfig,
    num_steps: int,
    weights: DecodingWeights,
    rows: Rows,
    eos_ids: Int[Array, "E"],
    mesh: Mesh | None = None,
) -> tuple[Rows, Int[Array, "C B"]]:
    """Gives every row that is not done up to `num_steps` more tokens.

    Returns:
      The rows, and their new tokens in order, `NO_TOKEN` after a row's last.
    """
    num_rows = rows.tokens.shape[0]

    def goes_on(carry: tuple[Array, Rows, Array]) -> Array:
        step, rows, _ = carry
        return (step < num_steps) & ~jnp.all(rows.is_done)

    def one_step(carry: tuple[Array, Rows, Array]) -> tuple[Array, Rows, Array]:
        step, rows, drawn_CB = carry
        logits_VB, cache = decode_step(config, weights, rows.tokens, rows.positions, rows.cache)
        next_B = _draw(sampling, logits_VB, rows.keys, rows.positions + 1)
        positions_B = jnp.where(rows.is_done, rows.positions, rows.positions + 1)
        tokens_B = jnp.where(rows.is_done, rows.tokens, next_B)
        drawn_CB = drawn_CB.at[step].set(jnp.where(rows.is_done, NO_TOKEN, next_B))
        is_last_B = jnp.any(next_B[:, None] == eos_ids[None], axis=1)
        is_done_B = rows.is_done | is_last_B | (positions_B >= rows.last_positions)
        rows = dataclasses.replace(
            rows, cache=cache, tokens=tokens_B, positions=positions_B, is_done=is_done_B
        )
        return step + 1, rows, drawn_CB

    drawn_CB = jnp.full((num_steps, num_rows), NO_TOKEN, jnp.int32)
    _, rows, drawn_CB = jax.lax.while_loop(
        goes_on, one_step, (jnp.zeros((), jnp.int32), rows, drawn_CB)
    )
    return _spread(rows, mesh), drawn_CB


def _spread(rows: Rows, mesh: Mesh | None) -> Rows:
    """Rows where they came from, so that they are changed in place and fit the next program."""
    if mesh is None:
        return rows
    return jax.lax.with_sharding_constraint(rows, row_shardings(rows, mesh))


def _draw(
    sampling: SamplingConfig,
    logits_VB: Float[Array, "V B"],
    keys_B: Key[Array, "B"],
    positions_B: Int[Array, "B"],
) -> Int[Array, "B"]:
    """The tokens at `positions`, each from its row's key and its position alone."""
    uniforms_B = jnp.zeros(positions_B.shape)
    if sampling.temperature > 0:
        uniforms_B = jax.vmap(
            lambda key, position: jax.random.uniform(jax.random.fold_in(key, position))
        )(keys_B, positions_B)
    return choose_tokens(
        logits_VB,
        uniforms_B,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
    )
