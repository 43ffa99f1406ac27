"""Flash attention equals the plain products, forward and backward, wherever keys are padding.

The TPU's kernel runs interpreted; cuDNN's call is answered by XLA's products, which take the same
arguments, so that its mask is tested and its kernel is not.
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core_jax.errors import ConfigError
from core_jax.mesh import BATCH_AXES, MeshConfig, make_mesh
from core_jax.nn.attention import Attention, attend, attend_to_keys
from core_jax.nn.flash_attention import AttentionKernel, choose_kernel

LENGTH, HEADS, WIDTH = 128, 2, 64
SPLASH, CUDNN, EINSUM = AttentionKernel.SPLASH, AttentionKernel.CUDNN, AttentionKernel.EINSUM
AUTO = AttentionKernel.AUTO


@pytest.fixture(autouse=True)
def kernels_on_a_cpu(monkeypatch):
    made = splash_attention.make_splash_mqa_single_device
    interpreted = functools.partial(made, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mqa_single_device", interpreted)
    answer = jax.nn.dot_product_attention

    def by_products(*arguments, implementation, **options):
        assert implementation == "cudnn"
        return answer(*arguments, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_products)


def arrays(rows, num_keys=LENGTH, dtype=jnp.float32):
    """Queries, keys, values and what the result is multiplied with, so that gradients differ."""
    keys = jax.random.split(jax.random.key(0), 4)
    lengths = (LENGTH, num_keys, num_keys, LENGTH)
    return [
        jax.random.normal(key, (rows, length, HEADS, WIDTH), dtype)
        for key, length in zip(keys, lengths, strict=True)
    ]


def masks(num_keys=LENGTH):
    """A row of real keys, padding in front, padding in between, padding alone."""
    place = np.arange(num_keys)
    return jnp.asarray(np.stack([place >= 0, place >= 37, place % 3 > 0, place < 0]))


def result_and_gradients(kernel, mesh, queries, keys, values, factor, key_mask):
    def loss(queries, keys, values):
        mixed = attend_to_keys(queries, keys, values, key_mask=key_mask, kernel=kernel, mesh=mesh)
        return jnp.sum(mixed.astype(jnp.float32) * factor), mixed

    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    gradients, mixed = step(queries, keys, values)
    return [mixed, *gradients]


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("num_keys", [LENGTH, 2 * LENGTH])
@pytest.mark.parametrize("kernel", [SPLASH, CUDNN])
def test_a_kernel_gives_what_the_products_give(monkeypatch, kernel, num_keys):
    """At every position and for every gradient; a row of padding alone averages all values."""
    # The products that stand in for cuDNN take float32, in which a difference would show.
    monkeypatch.setattr("core_jax.nn.flash_attention._refused_by_cudnn", lambda *_: "")
    given, mask = arrays(4, num_keys), masks(num_keys)
    expected = result_and_gradients(EINSUM, None, *given, mask)
    found = result_and_gradients(kernel, None, *given, mask)
    assert_close(found, expected)
    averages = jnp.mean(given[2][3], axis=0)
    np.testing.assert_allclose(found[0][3, 5], averages, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[1][3], 0.0)


def test_a_kernel_gives_the_same_on_a_mesh():
    """Each of 8 devices works on its own rows and heads."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    given, mask = arrays(4), masks()
    expected = result_and_gradients(EINSUM, None, *given, mask)
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES, None, "tensor"))
    placed = [jax.device_put(one, split) for one in given]
    assert_close(result_and_gradients(SPLASH, mesh, *placed, mask), expected)


def test_blocks_are_as_large_as_the_lengths_allow(monkeypatch):
    """384 = 3 x 128 and 1024 = 2 x 512: one kernel, blocks of 128 queries and 512 keys."""
    asked = []
    make = splash_attention.make_splash_mqa_single_device

    def kept(*arguments, **options):
        asked.append(options["block_sizes"])
        return make(*arguments, **options)

    monkeypatch.setattr(splash_attention, "make_splash_mqa_single_device", kept)
    queries = jax.ShapeDtypeStruct((1, 384, HEADS, WIDTH), jnp.float32)
    keys = jax.ShapeDtypeStruct((1, 1024, HEADS, WIDTH), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, 1024), jnp.bool_)
    jax.eval_shape(
        lambda q, k, m: attend_to_keys(q, k, k, key_mask=m, kernel=SPLASH, mesh=None),
        queries,
        keys,
        mask,
    )
    assert (asked[0].block_q, asked[0].block_kv) == (128, 512)
    assert (asked[0].block_q_dq, asked[0].block_kv_dkv) == (128, 512)


def on(platform):
    """A mesh of one device that is not here."""
    mesh = mock.Mock(spec=Mesh)
    mesh.devices = np.asarray([mock.Mock(platform=platform)], object)
    return mesh


@pytest.mark.parametrize(
    ("platform", "dtype", "length", "width", "kernel"),
    [
        ("tpu", "float32", 1024, 64, SPLASH),
        ("tpu", "bfloat16", 1024, 128, SPLASH),
        ("tpu", "bfloat16", 1020, 64, EINSUM),
        ("tpu", "bfloat16", 1024, 32, EINSUM),
        ("cuda", "bfloat16", 1020, 64, CUDNN),
        ("gpu", "float16", 20, 8, CUDNN),
        ("cuda", "float32", 1024, 64, EINSUM),
        ("cuda", "bfloat16", 1021, 64, EINSUM),
        ("cuda", "bfloat16", 1024, 60, EINSUM),
        ("cuda", "bfloat16", 1024, 136, EINSUM),
        ("cpu", "bfloat16", 1024, 64, EINSUM),
    ],
)
def test_the_devices_of_the_mesh_choose(platform, dtype, length, width, kernel):
    heads = jnp.zeros((1, length, 1, width), dtype)
    assert choose_kernel(AUTO, heads, heads, on(platform)) is kernel
    assert choose_kernel(EINSUM, heads, heads, on(platform)) is EINSUM


def test_without_a_mesh_this_process_chooses():
    """Which has CPUs: the program is the plain one, operation by operation."""
    given, mask = arrays(4), masks()

    def program(kernel):
        return jax.make_jaxpr(
            lambda q, k, v: attend_to_keys(q, k, v, key_mask=mask, kernel=kernel, mesh=None)
        )(*given[:3])

    plain = jax.make_jaxpr(lambda q, k, v: attend(q, k, v, visible=mask[:, None]))(*given[:3])
    assert str(program(AUTO)) == str(program(EINSUM)) == str(plain)


@pytest.mark.parametrize(
    ("kernel", "shape", "dtype", "message"),
    [
        (
            SPLASH,
            (1, 100, 2, 64),
            "float32",
            r"lengths that 128 divides.*\(1, 100, 2, 64\).*'auto'",
        ),
        (SPLASH, (1, 128, 2, 48), "float32", r"heads of a width that 64 divides.*pad the rows"),
        (CUDNN, (1, 128, 2, 64), "float32", r"takes bfloat16 or float16, not float32; set.*'auto'"),
        (CUDNN, (1, 127, 2, 64), "bfloat16", r"even lengths.*\(1, 127, 2, 64\) and 127 keys; pad"),
        (CUDNN, (1, 128, 2, 136), "float16", r"8 divides, up to 128, not.*136\)"),
    ],
)
def test_what_a_kernel_cannot_take_is_an_error(kernel, shape, dtype, message):
    heads, mask = jnp.zeros(shape, dtype), jnp.ones(shape[:2], bool)
    with pytest.raises(ConfigError, match=message):
        attend_to_keys(heads, heads, heads, key_mask=mask, kernel=kernel, mesh=None)


def test_a_module_is_initialised_on_what_its_kernel_does_not_take():
    tokens, mask = jnp.zeros((1, 4, 32)), jnp.ones((1, 4), bool)
    module = Attention(2, 64, 32, kernel=SPLASH)
    params = module.init(jax.random.key(0), tokens, tokens, mask, method="to_keys")
    with pytest.raises(ConfigError, match="splash kernel takes lengths"):
        module.apply(params, tokens, tokens, mask, method="to_keys")
