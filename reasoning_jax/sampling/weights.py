"""Parameters as the engine reads them, where they are to be on the mesh.

Dimension key: none.
"""

import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from core_jax.arrays import Params, PyTree
from core_jax.sharding import match_rules
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.model.decoding import DecodingWeights, for_decoding
from reasoning_jax.model.shardings import DECODING_RULES


def turner(
    config: DecoderConfig, params: PyTree, mesh: Mesh
) -> Callable[[Params], DecodingWeights]:
    """`for_decoding`, compiled, whose result is spread over a mesh.

    Args:
      config: architecture and compute.
      params: the parameters, or their shapes.
      mesh: where the result is to be.
    """
    turn = functools.partial(for_decoding, config)
    return jax.jit(
        turn, out_shardings=match_rules(DECODING_RULES, jax.eval_shape(turn, params), mesh)
    )
