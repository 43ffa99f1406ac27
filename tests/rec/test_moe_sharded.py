"""The mixture of experts over 8 fake devices equals one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.nn.feed_forward import Activation
from rec_jax.moe.layer import SparseMoe
from rec_jax.moe.router import Balance, MoeBackend, MoeConfig

NUM_EXPERTS, CHOICES, WIDTH, HIDDEN, LEAD = 8, 3, 6, 10, (8, 17)
DENSE = MoeConfig(
    num_experts=NUM_EXPERTS,
    experts_per_token=CHOICES,
    d_model=WIDTH,
    d_hidden=HIDDEN,
    activation=Activation.SWIGLU,
    balance=Balance.LOSS_FREE,
    backend=MoeBackend.DENSE,
    capacity_factor=NUM_EXPERTS / CHOICES,  # room for every token at every expert
)
SHARDED = dataclasses.replace(DENSE, backend=MoeBackend.AUTO)


@functools.cache
def case():
    """Parameters, inputs, a mask and a cotangent."""
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(2, *LEAD, WIDTH)).astype(np.float32)
    shapes = jax.eval_shape(SparseMoe(DENSE).init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    params["router"]["bias"] *= 0.05
    return params, x, rng.random(LEAD) < 0.8, cotangent


@functools.cache
def outputs_and_gradients(config, sizes):
    """((outputs, aux), gradients of <outputs, cotangent> + balance) on a mesh, or on one device."""
    mesh = None if sizes is None else make_mesh(MeshConfig(**dict(sizes)))
    layer = SparseMoe(config)

    def loss(params, x, token_mask, cotangent):
        y, aux = layer.apply({"params": params}, x, token_mask, mesh)
        return jnp.sum(y * cotangent) + aux.balance, (y, aux)

    by, outputs = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(*case())
    return jax.tree.map(np.asarray, (outputs, by))


@pytest.mark.parametrize(
    "sizes",
    [
        {"expert": 8},
        {"data": 2, "expert": 4},
        {"fsdp": 2, "expert": 2, "tensor": 2},
        {"expert": 4, "tensor": 2},
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"data": 8},
    ],
    ids=lambda sizes: "-".join(f"{axis}{size}" for axis, size in sizes.items()),
)
def test_sharded_equals_the_dense_reference(sizes):
    """Outputs, global load, balance gradient and all other gradients."""
    sizes = {"data": 1, **sizes}
    got = outputs_and_gradients(SHARDED, tuple(sizes.items()))
    expected = outputs_and_gradients(DENSE, None)
    assert float(got[0][1].dropped) == 0.0
    flat, _ = jax.tree_util.tree_flatten_with_path(expected)
    for (path, want), have in zip(flat, jax.tree.leaves(got), strict=True):
        scale = max(np.max(np.abs(want)), 1e-6)
        np.testing.assert_allclose(have / scale, want / scale, atol=3e-6, err_msg=str(path))


@functools.cache
def skewed_layer():
    """(params, mask) -> (y, aux) on 8 devices with capacity 8, where all want experts 0, 1, 2.

    Capacity: ceil(1.25 * 17 tokens * 3 choices / 8 experts) = 8 of a device's 17 tokens.
    """
    params, x, _, _ = case()
    bias = 9.0 * (np.arange(NUM_EXPERTS) < 3).astype(np.float32)
    params = {**params, "router": {**params["router"], "bias": bias}}
    mesh = make_mesh(MeshConfig(data=2, expert=4))
    layer = SparseMoe(dataclasses.replace(SHARDED, capacity_factor=1.25))
    sharded = jax.jit(lambda params, x, mask: layer.apply({"params": params}, x, mask, mesh))
    dense = jax.jit(lambda params, x, mask: SparseMoe(DENSE).apply({"params": params}, x, mask))
    return functools.partial(sharded, params, x), functools.partial(dense, params, x)


def test_overflow_is_counted_and_gives_zero():
    """9 of 17 tokens lose their three choices on each of 8 devices, in the order of the tokens."""
    sharded, dense = skewed_layer()
    mask = np.ones(LEAD, bool)
    (y, aux), (dense_y, _) = sharded(mask), dense(mask)
    assert float(aux.dropped) == 9 * 3 * 8
    np.testing.assert_array_equal(aux.load, [136, 136, 136, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(np.asarray(y)[:, :8], np.asarray(dense_y)[:, :8], atol=1e-4)
    assert not np.any(np.asarray(y)[:, 8:])


def test_masked_tokens_take_no_capacity():
    """With at most `capacity` tokens left on each device, nothing overflows."""
    sharded, dense = skewed_layer()
    mask = np.zeros(LEAD, bool)
    mask[:, 9:] = True
    (y, aux), (dense_y, _) = sharded(mask), dense(mask)
    assert float(aux.dropped) == 0.0
    np.testing.assert_allclose(y, dense_y, atol=1e-4)
    assert np.all(np.any(np.asarray(y), axis=-1) == mask)


@pytest.mark.parametrize(
    ("change", "sizes", "rows", "message"),
    [
        ({}, {"expert": 8}, 7, "119 tokens, which do not split over 8 devices"),
        ({"num_experts": 6}, {"expert": 4}, 8, "moe.num_experts is 6, not divisible"),
        ({"d_hidden": 9}, {"tensor": 2}, 8, "moe.d_hidden is 9, not divisible"),
        ({"d_model": 7}, {"fsdp": 2}, 8, "moe.d_model is 7, not divisible"),
    ],
)
def test_uneven_sizes_are_errors(change, sizes, rows, message):
    config = dataclasses.replace(SHARDED, **change)
    mesh = make_mesh(MeshConfig(**sizes))
    layer = SparseMoe(config)
    x = jnp.zeros((rows, 17, config.d_model))
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(lambda params: layer.apply(params, x, None, mesh), params)
