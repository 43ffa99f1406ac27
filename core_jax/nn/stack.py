"""A stack of equal layers as one scan over stacked parameters.

Parameters of all layers lie in one tree whose leaves have a leading layer dimension, so compile
time does not grow with depth; `unroll` trades compile time for speed on small models, and
`remat` trades compute for activation memory.

Dimension key: none (shapes are the layer's).
"""

import enum
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from core_jax.arrays import Array, Key, Params, PyTree

LayerFunction = Callable[[Params, PyTree, PyTree, Any], tuple[PyTree, PyTree]]
"""(layer parameters, carry, layer inputs, key or None) -> (carry, layer outputs)."""


class Remat(enum.Enum):
    """What the backward pass keeps of a layer's forward pass."""

    NONE = "none"
    DOTS = "dots"
    FULL = "full"


def init_stack(layer: nn.Module, num_layers: int, *example: PyTree, key: Key[Array, ""]) -> Params:
    """Initialises `num_layers` independent copies of `layer` as one stacked tree.

    Args:
      layer: the module of one layer.
      num_layers: number of layers, at least 1.
      *example: arguments of the layer's `__call__` (only shapes and dtypes matter).
      key: random key.

    Returns:
      Parameters whose leaves have a leading dimension of size `num_layers`.
    """
    keys = jax.random.split(key, num_layers)
    return jax.vmap(lambda layer_key: layer.init(layer_key, *example)["params"])(keys)


def layers_apart(layers: Params | tuple[Params, ...]) -> tuple[Params, ...]:
    """The trees of a stack's layers one by one; already so, they stay as they are.

    Slices that are taken before a loop over many runs of the stack need not be copied in each.
    """
    if isinstance(layers, tuple):
        return layers
    num_layers = jax.tree.leaves(layers)[0].shape[0]
    return tuple(
        jax.tree.map(lambda leaf, number=number: leaf[number], layers)
        for number in range(num_layers)
    )


def run_stack(
    function: LayerFunction,
    params: Params,
    carry: PyTree,
    inputs: PyTree = None,
    *,
    key: Key[Array, ""] | None = None,
    remat: Remat = Remat.NONE,
    unroll: int = 1,
) -> tuple[PyTree, PyTree]:
    """Runs every layer in turn.

    Args:
      function: one layer, see `LayerFunction`.
      params: stacked parameters of `init_stack`.
      carry: what flows from layer to layer, for example activations.
      inputs: per-layer inputs with a leading layer dimension (for example caches), or None.
      key: split into one key per layer, or None for a deterministic pass.
      remat: what the backward pass keeps.
      unroll: layers per iteration of the compiled loop; the number of layers removes the loop.

    Returns:
      The final carry and the layers' outputs stacked along a leading layer dimension.
    """
    num_layers = jax.tree.leaves(params)[0].shape[0]
    keys = None if key is None else jax.random.split(key, num_layers)
    body = function
    if remat is Remat.FULL:
        body = jax.checkpoint(body, prevent_cse=False)
    elif remat is Remat.DOTS:
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        body = jax.checkpoint(body, prevent_cse=False, policy=policy)

    def step(carry: PyTree, layer: PyTree) -> tuple[PyTree, PyTree]:
        layer_params, layer_inputs, layer_key = layer
        return body(layer_params, carry, layer_inputs, layer_key)

    return jax.lax.scan(step, carry, (params, inputs, keys), unroll=min(unroll, num_layers))
