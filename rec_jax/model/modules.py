"""Linen modules as functions of their parameters, and where activations and tables live.

Dimension key: B batch, D model.
"""

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core_jax import sharding
from core_jax.arrays import Array, Float, Params, PyTree
from rec_jax.model.config import OneRecConfig
from rec_jax.model.shardings import RULES


def run(module: nn.Module, params: Params, *arguments: PyTree, **options: Any) -> Any:
    """Applies a module to its parameters; Linen's own return type covers more than we use."""
    return module.apply({"params": params}, *arguments, **options)


def norm(config: OneRecConfig, params: Params, tokens: Float[Array, "*dims"]) -> Array:
    """The final norm of the encoder or the decoder."""
    return run(nn.RMSNorm(dtype=config.compute_dtype.dtype), params, tokens)


def gathered(tables: Params, mesh: Mesh | None) -> Params:
    """The embeddings with their tables whole on every device, for the moment of their use.

    Tables lie split over all of `fsdp` and `tensor`, tokens over the batch axes. A lookup in a
    split table leaves activations split along D, which the compiler brings back to the batch axes
    only by copying them whole to every device; so the table moves instead, which is smaller.
    """
    if mesh is None:
        return tables
    return jax.lax.with_sharding_constraint(tables, NamedSharding(mesh, PartitionSpec()))


def gathered_layer(config: OneRecConfig, params: Params, mesh: Mesh | None) -> Params:
    """One layer's parameters as they are used; experts gather their own."""
    return sharding.gathered_layer(
        RULES, params, mesh, leaves=_GATHERED, dtype=config.compute_dtype.dtype
    )


_GATHERED = r"^(?!.*experts/)"
"""Paths without experts."""
