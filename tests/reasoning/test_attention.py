"""Attention by plain products: block by block of queries, as over whole rows at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.nn.flash_attention import AttentionKernel
from reasoning_jax.model import attention


def attend(arrays, segments):
    return attention.attend_causally(*arrays, segment_ids=segments, kernel=AttentionKernel.EINSUM)


def dense(arrays, segments):
    """Each query against all keys, one head at a time."""
    queries, keys, values = arrays
    length, num_groups = queries.shape[1], queries.shape[2] // keys.shape[2]
    visible = (segments[:, :, None] == segments[:, None, :]) & np.tri(length, dtype=bool)[None]
    heads = []
    for head in range(queries.shape[2]):
        key, value = keys[:, :, head // num_groups], values[:, :, head // num_groups]
        scores = jnp.einsum("btx,bsx->bts", queries[:, :, head], key) / queries.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf))
        heads.append(jnp.einsum("bts,bsx->btx", weights, value))
    return jnp.stack(heads, axis=2)


@pytest.mark.parametrize("length", [1, 131, 643])
def test_blocks_of_queries_attend_as_whole_rows(length):
    """One block, two of unequal size, and the most; outputs and all gradients."""
    rng = np.random.default_rng(length)
    shapes = ((2, length, 6, 5), (2, length, 3, 5), (2, length, 3, 5))
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    segments = jnp.asarray(np.sort(rng.integers(0, 3, (2, length), dtype=np.int32), axis=1))
    towards = jnp.asarray(rng.normal(size=shapes[0]), jnp.float32)

    def output_and_gradients(function):
        def loss(arrays):
            output = function(arrays, segments)
            return jnp.sum(output * towards), output

        gradients, output = jax.jit(jax.grad(loss, has_aux=True))(arrays)
        return [output, *gradients]

    found, expected = output_and_gradients(attend), output_and_gradients(dense)
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("length", "shares"), [(64, [1]), (128, [1, 2]), (1024, range(1, 9))])
def test_no_block_looks_at_later_keys(length, shares):
    shape = jax.ShapeDtypeStruct((2, length, 6, 5), jnp.float32)
    segments = jax.ShapeDtypeStruct((2, length), jnp.int32)
    text = str(jax.make_jaxpr(attend)([shape] * 3, segments))
    block = length // len(shares)
    scores = [f"f32[2,6,{block},{block * share}] = dot_general" for share in shares]
    assert [text.count(one) for one in scores] == [1] * len(scores)
    assert text.count("dot_general") == 2 * len(scores)
