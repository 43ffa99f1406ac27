"""Sizes and places of what the engine holds; asked by the engine, and by the check before a run.

Dimension key: P prompts, T tokens of a prompt.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from core_jax.arrays import Array, PyTree
from core_jax.errors import ConfigError
from core_jax.mesh import BATCH_AXES, batch_sharding, replicated
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.sampling.config import CacheDtype, EngineConfig


def batch_shards(mesh: Mesh | None) -> int:
    """Parts into which a mesh splits a batch."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_rows(engine: EngineConfig, mesh: Mesh | None) -> None:
    """Raises ConfigError for rows that the mesh does not divide."""
    shards = batch_shards(mesh)
    if engine.num_rows % shards:
        raise ConfigError(
            f"engine.num_rows is {engine.num_rows}, which does not split over the mesh's {shards} "
            f"batch shards; set it to a multiple of {shards}"
        )


def cache_dtype(config: DecoderConfig, engine: EngineConfig, mesh: Mesh | None) -> jnp.dtype:
    """The cache's dtype on the devices of a mesh; without one, on the default backend."""
    if engine.cache_dtype is not CacheDtype.AUTO:
        return jnp.dtype(engine.cache_dtype.value)
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return jnp.dtype("float32") if platform == "cpu" else config.dtype.dtype


def prompts_shape(engine: EngineConfig, longest: int, mesh: Mesh | None) -> tuple[int, int]:
    """Prompts of one reading, a multiple of the mesh's batch shards, and their padded length.

    Args:
      engine: prompts, and the multiple of their length.
      longest: tokens of the longest prompt.
      mesh: where they are read.

    >>> prompts_shape(EngineConfig(prompts_per_prefill=7, prompt_multiple=16), 17, None)
    (7, 32)
    """
    shards = batch_shards(mesh)
    return (
        -(-engine.prompts_per_prefill // shards) * shards,
        -(-longest // engine.prompt_multiple) * engine.prompt_multiple,
    )


def pad_prompts(
    prompts: Sequence[Sequence[int]], engine: EngineConfig, mesh: Mesh | None
) -> tuple[Array, Array]:
    """Prompts as `read_prompts` takes them, spread over the mesh.

    Args:
      prompts: token ids, at most `engine.prompts_per_prefill` prompts.
      engine: see `prompts_shape`.
      mesh: where they are read.

    Returns:
      Int32 tokens [P, T], and int32 lengths [P], 1 where there is no prompt.
    """
    tokens_PT = np.zeros(prompts_shape(engine, max(map(len, prompts)), mesh), np.int32)
    lengths_P = np.ones(tokens_PT.shape[:1], np.int32)
    for index, prompt in enumerate(prompts):
        tokens_PT[index, : len(prompt)] = prompt
        lengths_P[index] = len(prompt)
    both = (tokens_PT, lengths_P)
    return jax.device_put(both, None if mesh is None else batch_sharding(mesh))


def needed_slots(config: DecoderConfig, engine: EngineConfig, longest: int) -> int:
    """Slots per row that the next chunk needs.

    Args:
      config: the context.
      engine: steps of a chunk.
      longest: tokens of the longest row, its prompt included.
    """
    return min(longest + engine.steps_per_chunk, config.max_positions)


def grown_slots(engine: EngineConfig, needed: int) -> int:
    """Slots per row to which a cache grows that needs so many.

    >>> grown_slots(EngineConfig(slots_multiple=32), 33)
    64
    """
    return -(-needed // engine.slots_multiple) * engine.slots_multiple


def on_every_device(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """A copy on every device of a mesh; without one, on the default device."""
    return jax.device_put(tree, None if mesh is None else replicated(mesh))
