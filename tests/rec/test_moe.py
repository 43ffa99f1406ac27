"""The mixture of experts on one device: against the dense reference, and its invariants."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from core_jax.nn.feed_forward import Activation
from rec_jax.moe.dispatch import choose_block_sizes, plan_blocks, plan_capacity
from rec_jax.moe.layer import SparseMoe, experts_apart
from rec_jax.moe.router import Balance, GateNormalisation, MoeBackend, MoeConfig, route

NUM_EXPERTS, CHOICES, WIDTH, HIDDEN = 7, 3, 11, 13
LEAD = (5, 31)
BASE = MoeConfig(
    num_experts=NUM_EXPERTS,
    experts_per_token=CHOICES,
    d_model=WIDTH,
    d_hidden=HIDDEN,
    balance=Balance.LOSS_FREE,
    block_size=32,
)


def make(config, lead=LEAD, dtype="float32"):
    """A layer, its parameters with a non-zero bias, inputs and a cotangent."""
    rng = np.random.default_rng(0)
    layer = SparseMoe(config, jnp.dtype(dtype))
    x, cotangent = rng.normal(size=(2, *lead, WIDTH)).astype(np.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) / leaf.shape[-1] ** 0.5, shapes)
    params["router"]["bias"] = 0.05 * rng.normal(size=config.num_experts)
    return layer, jax.tree.map(np.float32, params), x, cotangent


def value_and_gradients(layer, params, x, cotangent, token_mask=None):
    """((outputs, aux), gradients of <outputs, cotangent> + balance by parameters and inputs)."""
    if token_mask is None:
        token_mask = np.ones(x.shape[:-1], bool)
    by, outputs = _gradients(layer, params, x, cotangent, token_mask)
    return jax.tree.map(np.asarray, (outputs, by))


@functools.partial(jax.jit, static_argnums=0)
def _gradients(layer, params, x, cotangent, token_mask):
    def loss(params, x):
        y, aux = layer.apply({"params": params}, x, token_mask)
        return jnp.sum(y.astype(jnp.float32) * cotangent) + aux.balance, (y, aux)

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)


routed = jax.jit(route, static_argnums=0)


def assert_close(got, expected, tolerance):
    """Every leaf agrees, relative to its largest entry."""
    flat, _ = jax.tree_util.tree_flatten_with_path(expected)
    for (path, want), have in zip(flat, jax.tree.leaves(got), strict=True):
        want, have = np.asarray(want, np.float32), np.asarray(have, np.float32)
        scale = max(np.max(np.abs(want)), 1e-6)
        np.testing.assert_allclose(have / scale, want / scale, atol=tolerance, err_msg=str(path))


def softmax(logits):
    """Softmax over the last dimension."""
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def some_masked(lead=LEAD):
    """A mask with about a third of the tokens off."""
    return np.random.default_rng(9).random(lead) < 0.7


@pytest.mark.parametrize("backend", [MoeBackend.BLOCK, MoeBackend.RAGGED], ids=lambda b: b.value)
@pytest.mark.parametrize("activation", list(Activation), ids=lambda a: a.value)
def test_sparse_backends_equal_the_dense_reference(backend, activation):
    config = dataclasses.replace(BASE, activation=activation, backend=MoeBackend.DENSE)
    layer, params, x, cotangent = make(config)
    expected = value_and_gradients(layer, params, x, cotangent, some_masked())
    sparse = SparseMoe(dataclasses.replace(config, backend=backend))
    got = value_and_gradients(sparse, params, x, cotangent, some_masked())
    assert_close(got, expected, 2e-6)


@pytest.mark.parametrize("activation", [Activation.RELU, Activation.SWIGLU], ids=lambda a: a.value)
def test_experts_apart_are_the_same_experts(activation):
    config = dataclasses.replace(BASE, activation=activation)
    layer, params, x, _ = make(config)
    apart = experts_apart(config, params, "cpu")
    assert len(apart["experts"]["down"]) == NUM_EXPERTS
    x, mask = jnp.asarray(x), jnp.asarray(some_masked())
    apply = jax.jit(lambda params: layer.apply({"params": params}, x, mask))
    for left, right in zip(*map(jax.tree.leaves, (apply(params), apply(apart))), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6)


def test_experts_stay_together_for_the_other_backends():
    _, params, _, _ = make(BASE)
    assert experts_apart(BASE, params, "tpu") is params
    dense = dataclasses.replace(BASE, backend=MoeBackend.DENSE)
    assert experts_apart(dense, params, "cpu") is params


def test_the_dense_reference_is_the_papers_sum():
    """y = sum over chosen i of s_i FFN_i(x), s the softmax over all experts (Eq. 2)."""
    config = dataclasses.replace(BASE, backend=MoeBackend.DENSE, activation=Activation.RELU)
    layer, params, x, cotangent = make(config)
    params["router"]["bias"] = np.zeros(NUM_EXPERTS, np.float32)
    (y, _), _ = value_and_gradients(layer, params, x, cotangent)
    scores_TE = softmax(x[0] @ params["router"]["kernel"])
    for token, scores, output in zip(x[0], scores_TE, y[0], strict=True):
        total = np.zeros(WIDTH)
        for expert in np.argsort(-scores)[:CHOICES]:
            hidden = np.maximum(token @ params["experts"]["up"][expert], 0.0)
            total += scores[expert] * (hidden @ params["experts"]["down"][expert])
        np.testing.assert_allclose(output, total, rtol=1e-4, atol=1e-5)


def test_bfloat16_compute_stays_near_float32():
    layer, params, x, cotangent = make(BASE)
    low = SparseMoe(BASE, jnp.dtype("bfloat16"))
    # The router reads rounded inputs too, so give both the same ones: choices must not differ.
    rounded = x.astype(jnp.bfloat16).astype(np.float32)
    (exact, _), exact_by = value_and_gradients(layer, params, rounded, cotangent)
    (y, _), by = value_and_gradients(low, params, rounded, cotangent)
    assert y.dtype == jnp.bfloat16
    assert by[0]["experts"]["up"].dtype == jnp.float32
    assert_close((y, by), (exact, exact_by), 3e-2)


def test_permuting_experts_with_router_columns_and_bias_changes_nothing():
    layer, params, x, cotangent = make(BASE)
    order = np.asarray([3, 0, 6, 5, 1, 4, 2])
    permuted = {
        "router": {name: leaf[..., order] for name, leaf in params["router"].items()},
        "experts": {name: leaf[order] for name, leaf in params["experts"].items()},
    }
    (y, aux), _ = value_and_gradients(layer, params, x, cotangent)
    (permuted_y, permuted_aux), _ = value_and_gradients(layer, permuted, x, cotangent)
    assert_close(permuted_y, y, 1e-6)
    np.testing.assert_array_equal(permuted_aux.load, aux.load[order])


def test_router_gradient_by_finite_differences():
    """Along a direction in which no token changes its experts, the loss is smooth."""
    layer, params, x, cotangent = make(BASE)
    kernel, step = params["router"]["kernel"], 1e-3
    direction = np.random.default_rng(5).normal(size=kernel.shape).astype(np.float32)

    def chosen(kernel):
        tokens = x.reshape(-1, WIDTH)
        routing = routed(BASE, tokens, kernel, params["router"]["bias"])
        return np.sort(np.asarray(routing.experts), axis=-1)

    def loss(kernel, mask):
        changed = {**params, "router": {**params["router"], "kernel": kernel}}
        (y, _), by = value_and_gradients(layer, changed, x, cotangent, mask)
        return np.sum(y * cotangent, dtype=np.float64), by

    nearby = [chosen(kernel + sign * 2 * step * direction) for sign in (-1, 0, 1)]
    steady = np.all((nearby[0] == nearby[1]) & (nearby[2] == nearby[1]), axis=-1)
    assert steady.sum() > 50
    mask = steady.reshape(LEAD)
    rise = loss(kernel + step * direction, mask)[0] - loss(kernel - step * direction, mask)[0]
    slope = np.sum(loss(kernel, mask)[1][0]["router"]["kernel"] * direction)
    assert abs(slope) > 1.0
    np.testing.assert_allclose(rise / (2 * step), slope, rtol=5e-3)


def test_gates_are_the_probabilities_over_all_experts():
    _, params, x, _ = make(BASE)
    tokens = x.reshape(-1, WIDTH)
    routing = routed(BASE, tokens, params["router"]["kernel"])
    scores = softmax(tokens @ params["router"]["kernel"])
    np.testing.assert_allclose(routing.gates, -np.sort(-scores)[:, :CHOICES], rtol=1e-5)
    assert np.all(np.sum(routing.gates, axis=-1) < 1.0)


def test_renormalised_gates_sum_to_one_and_keep_their_ratios():
    _, params, x, _ = make(BASE)
    tokens, kernel = x.reshape(-1, WIDTH), params["router"]["kernel"]
    plain = routed(BASE, tokens, kernel)
    config = dataclasses.replace(BASE, gate_normalisation=GateNormalisation.RENORMALISE)
    scaled = routed(config, tokens, kernel)
    np.testing.assert_allclose(np.sum(scaled.gates, axis=-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(
        scaled.gates / scaled.gates[:, :1], plain.gates / plain.gates[:, :1], rtol=1e-5
    )
    np.testing.assert_array_equal(scaled.experts, plain.experts)


def test_loss_free_bias_steers_the_choice_but_not_the_gates():
    _, params, x, _ = make(BASE)
    tokens, kernel = x.reshape(-1, WIDTH), params["router"]["kernel"]
    favoured = 2.0 * np.float32(np.arange(NUM_EXPERTS) == 2)
    routing = routed(BASE, tokens, kernel, favoured)
    assert np.all(np.asarray(routing.experts)[:, 0] == 2)
    scores = softmax(tokens @ kernel)
    np.testing.assert_allclose(routing.gates[:, 0], scores[:, 2], rtol=1e-5)


def test_balance_is_zero_and_its_gradient_is_the_excess_load():
    layer, params, x, cotangent = make(BASE)
    for mask in (None, some_masked()):
        (_, aux), (by, _) = value_and_gradients(layer, params, x, cotangent, mask)
        assert float(aux.balance) == 0.0
        tokens = x.size // WIDTH if mask is None else int(mask.sum())
        assert float(aux.load.sum()) == tokens * CHOICES
        # Nothing but the balance term depends on the bias.
        np.testing.assert_allclose(by["router"]["bias"], aux.load - np.mean(aux.load), rtol=1e-5)


@pytest.mark.parametrize("backend", list(MoeBackend), ids=lambda b: b.value)
def test_masked_tokens_give_zero_and_change_nothing(backend):
    layer, params, x, cotangent = make(dataclasses.replace(BASE, backend=backend))
    mask = some_masked()
    (y, aux), by = value_and_gradients(layer, params, x, cotangent, mask)
    assert not np.any(y[~mask])
    assert not np.any(by[1][~mask])
    other = np.where(mask[..., None], x, 3.0 - x)
    (other_y, other_aux), other_by = value_and_gradients(layer, params, other, cotangent, mask)
    assert_close((other_y, other_aux, other_by), (y, aux, by), 1e-6)


def test_all_tokens_masked():
    layer, params, x, cotangent = make(BASE)
    none = np.zeros(LEAD, bool)
    (y, aux), by = value_and_gradients(layer, params, x, cotangent, none)
    assert not np.any(y)
    assert not np.any(aux.load)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(by))


def test_all_tokens_on_the_same_experts_is_exact():
    """The worst skew: three experts get every token."""
    layer, params, x, cotangent = make(BASE)
    params["router"]["bias"] = 5.0 * np.float32(np.eye(NUM_EXPERTS)[[1, 2, 6]].sum(0))
    got = value_and_gradients(layer, params, x, cotangent)
    num_tokens = x.size // WIDTH
    np.testing.assert_array_equal(got[0][1].load, num_tokens * np.eye(7)[[1, 2, 6]].sum(0))
    dense = SparseMoe(dataclasses.replace(BASE, backend=MoeBackend.DENSE))
    assert_close(got, value_and_gradients(dense, params, x, cotangent), 2e-6)


def test_two_tokens():
    layer, params, x, cotangent = make(BASE, lead=(2,))
    dense = SparseMoe(dataclasses.replace(BASE, backend=MoeBackend.DENSE))
    expected = value_and_gradients(dense, params, x, cotangent)
    assert_close(value_and_gradients(layer, params, x, cotangent), expected, 2e-6)


@pytest.mark.parametrize("sizes", [(8,), (16, 4), (8, 4, 1)])
def test_block_plan_covers_every_slot_once(sizes):
    """Blocks of one expert hold exactly its slots, none overlap, and each size is used."""
    experts = np.random.default_rng(3).integers(0, 5, (53, 2)) ** 2 // 4  # skewed, 4 is masked
    plan = jax.jit(plan_blocks, static_argnums=(1, 2))(jnp.asarray(experts), 4, sizes)
    slot_of_row = np.asarray(plan.rows.slot_of_row)
    seen, flat = np.zeros(len(slot_of_row), int), experts.reshape(-1)
    for blocks in plan.blocks:
        for n in range(int(blocks.num_used)):
            first = int(blocks.first_rows[n])
            seen[first : first + blocks.size] += 1
            slots = slot_of_row[first : first + blocks.size]
            assert np.all(flat[slots[slots < len(flat)]] == blocks.experts[n])
    kept = np.flatnonzero(flat < 4)
    assert np.all(seen[slot_of_row < len(flat)] == 1) and seen.max() == 1
    np.testing.assert_array_equal(np.sort(slot_of_row[slot_of_row < len(flat)]), kept)
    np.testing.assert_array_equal(slot_of_row[np.asarray(plan.rows.row_of_slot)[kept]], kept)
    padded = sum(-(-np.sum(flat == e) // sizes[-1]) * sizes[-1] for e in range(4))
    assert seen.sum() == padded


def test_capacity_plan_keeps_the_first_and_counts_the_rest():
    experts = jnp.asarray([[0, 1], [0, 2], [0, 1], [3, 3], [0, 1]])  # 3 is masked
    rows, dropped = plan_capacity(experts, 3, 2)
    expected = [0, 2, 1, 4, 6, 3, 6, 6, 6, 6]
    np.testing.assert_array_equal(rows.row_of_slot, expected)
    np.testing.assert_array_equal(rows.slot_of_row, [0, 2, 1, 5, 3, 10])
    assert float(dropped) == 3.0  # two of expert 0, one of expert 1


def test_block_sizes_follow_the_even_load():
    assert choose_block_sizes(2 * 4096, 24, 256) == (256, 64)
    assert choose_block_sizes(2 * 4096, 24, 64) == (64, 16)
    assert choose_block_sizes(1, 24, 256) == (8,)
    assert choose_block_sizes(2 * 4096, 24, 4) == (4,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 0}, "moe.num_experts is 0"),
        ({"experts_per_token": 8}, "more than the 7 experts"),
        ({"block_size": 48}, "power of two"),
        ({"capacity_factor": 0.0}, "must be positive"),
    ],
)
def test_config_errors(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(BASE, **change)
