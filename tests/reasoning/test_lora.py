"""Adapters: nothing at birth, merged equals attached, dropout in training alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.sharding import match_rules
from reasoning_jax.model import decoder_lm, lora
from reasoning_jax.model.config import LORA_TARGETS, LoraConfig
from reasoning_jax.model.decoder_lm import whole_rows
from reasoning_jax.model.decoding import for_decoding
from reasoning_jax.model.shardings import RULES
from tests.reasoning.model_cases import BIASED, PLAIN, make_params, make_tokens

LORA = LoraConfig(rank=3, alpha=12.0)


def hidden_of(params, **options):
    inputs = whole_rows(make_tokens(PLAIN, 2, 7))
    return decoder_lm.apply(PLAIN, params, inputs, **options).hidden


def trained(adapters, seed=5):
    """Adapters whose B is not zero."""
    leaves, structure = jax.tree.flatten(adapters)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        structure,
        [
            leaf + 0.1 * jax.random.normal(key, leaf.shape)
            for leaf, key in zip(leaves, keys, strict=True)
        ],
    )


def test_fresh_adapters_change_nothing():
    params = make_params(PLAIN)
    adapters = lora.init_lora(PLAIN, LORA, key=jax.random.key(1))
    attached = lora.attach(params, adapters, LORA.scale)
    np.testing.assert_array_equal(hidden_of(attached), hidden_of(params))


@pytest.mark.parametrize("targets", [LORA_TARGETS, ("out",), ("query", "down")])
def test_merged_equals_attached(targets):
    config = LoraConfig(rank=3, alpha=12.0, targets=targets)
    params = make_params(PLAIN)
    adapters = trained(lora.init_lora(PLAIN, config, key=jax.random.key(1)))
    attached = hidden_of(lora.attach(params, adapters, config.scale))
    np.testing.assert_allclose(
        hidden_of(lora.merge(params, adapters, config.scale)), attached, rtol=0, atol=1e-5
    )
    assert float(jnp.abs(attached - hidden_of(params)).max()) > 0.1


def test_the_update_is_alpha_over_rank_times_a_b():
    params = make_params(PLAIN)
    adapters = trained(lora.init_lora(PLAIN, LORA, key=jax.random.key(1)))
    merged = lora.merge(params, adapters, LORA.scale)
    one = adapters["layers"]["attention"]["out"]
    update = np.einsum("lhxr,lrd->lhxd", one["lora_a"], one["lora_b"]) * 12.0 / 3
    kernels = [tree["layers"]["attention"]["out"]["kernel"] for tree in (merged, params)]
    np.testing.assert_allclose(kernels[0] - kernels[1], update, rtol=0, atol=1e-5)


def test_gradients_reach_the_adapters_alone_when_these_are_trained():
    params = make_params(PLAIN)
    adapters = lora.init_lora(PLAIN, LORA, key=jax.random.key(1))
    grads = jax.grad(
        lambda adapters: jnp.sum(hidden_of(lora.attach(params, adapters, LORA.scale)) ** 2)
    )(adapters)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        is_a = "lora_a" in jax.tree_util.keystr(path)
        assert (float(jnp.abs(grad).max()) == 0) is is_a  # B is zero at first, so A gets nothing


def test_dropout_acts_with_a_key_and_on_the_adapters_alone():
    params = make_params(PLAIN)
    adapters = trained(lora.init_lora(PLAIN, LORA, key=jax.random.key(1)))
    attached = lora.attach(params, adapters, LORA.scale)
    quiet = hidden_of(attached, lora_dropout=0.5)
    np.testing.assert_array_equal(quiet, hidden_of(attached))
    first, again, other = (
        hidden_of(attached, lora_dropout=0.5, key=jax.random.key(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - quiet).max()) > 0.01
    assert float(jnp.abs(first - other).max()) > 0.01
    without = hidden_of(params, lora_dropout=0.5, key=jax.random.key(1))
    np.testing.assert_array_equal(without, hidden_of(params))


def test_adapters_have_sharding_rules_of_their_own():
    config = LoraConfig(rank=2)
    adapters = lora.init_lora(BIASED, config, key=jax.random.key(1))
    mesh = make_mesh(MeshConfig(data=8))
    assert len(jax.tree.leaves(match_rules(RULES, adapters, mesh))) == 14


def test_errors_name_the_target():
    params = make_params(PLAIN)
    with pytest.raises(ConfigError, match=r"lora\.targets names 'qurey'. Did you mean 'query'"):
        LoraConfig(targets=("qurey",))
    with pytest.raises(ConfigError, match="adapter for 'mlp/gates', which the model does not have"):
        lora.merge(params, {"layers": {"mlp": {"gates": {}}}}, 1.0)
    with pytest.raises(ConfigError, match=r"lora.dropout is 1.0; it must be in \[0, 1\)"):
        LoraConfig(dropout=1.0)
    with pytest.raises(ConfigError, match=r"lora\.rank is -1"):
        LoraConfig(rank=-1)
    with pytest.raises(ConfigError, match=r"lora\.targets is empty"):
        LoraConfig(targets=())
    adapters = lora.init_lora(PLAIN, LORA, key=jax.random.key(1))
    with pytest.raises(ConfigError, match="merge them into the model first"):
        for_decoding(PLAIN, lora.attach(params, adapters, LORA.scale))


OTHER = LoraConfig(rank=5, alpha=7.0, targets=("query", "out", "down"))


def two_adapters():
    first = trained(lora.init_lora(PLAIN, LORA, key=jax.random.key(1)), seed=5)
    return first, trained(lora.init_lora(PLAIN, OTHER, key=jax.random.key(2)), seed=6)


def alternating(inputs):
    return jax.tree.map(lambda rows: jnp.repeat(rows, 2, axis=0), inputs)


def test_two_streams_equal_two_merged_models():
    """Ranks, targets and scales differ; the base is there once."""
    params, adapters = make_params(PLAIN), two_adapters()
    scales = LORA.scale, OTHER.scale
    stacked = lora.stack_adapters(*adapters, scales=scales)
    inputs = whole_rows(make_tokens(PLAIN, 3, 7))
    attached = lora.attach(params, stacked, 1.0)
    both = decoder_lm.apply(PLAIN, attached, alternating(inputs)).hidden
    for stream, (one, scale) in enumerate(zip(adapters, scales, strict=True)):
        merged = lora.merge(params, one, scale)
        expected = decoder_lm.apply(PLAIN, merged, inputs).hidden
        np.testing.assert_allclose(both[stream::2], expected, rtol=0, atol=1e-5)
    assert float(jnp.abs(both[0::2] - both[1::2]).max()) > 0.1


def test_streams_lie_side_by_side_along_the_rank():
    first, second = two_adapters()
    stacked = lora.stack_adapters(first, second, scales=(4.0, 1.4))["layers"]
    assert {name for group in stacked.values() for name in group} == set(LORA_TARGETS)
    query, up = stacked["attention"]["query"], stacked["mlp"]["up"]
    assert query["lora_a"].shape == (2, 17, 8)
    assert query["lora_b"].shape == (2, 8, 6, 10)
    is_first = np.arange(8) < 3
    np.testing.assert_array_equal(query["lora_streams"], [[is_first, ~is_first]] * 2)
    assert up["lora_a"].shape == (2, 17, 3)  # of the first model alone
    np.testing.assert_array_equal(up["lora_streams"], [[[True] * 3, [False] * 3]] * 2)


def test_a_stream_sees_nothing_of_the_other():
    """Not even where its numbers are so large that products with zero would be NaN."""
    params, (first, second) = make_params(PLAIN), two_adapters()
    inputs = alternating(whole_rows(make_tokens(PLAIN, 2, 7)))

    def positive_hidden(other):
        stacked = lora.stack_adapters(first, other, scales=(4.0, 1.4))
        attached = lora.attach(params, stacked, 1.0)
        return decoder_lm.apply(PLAIN, attached, inputs).hidden[0::2]

    huge = jax.tree.map(lambda leaf: leaf, second)
    for targets in huge["layers"].values():
        for adapter in targets.values():
            adapter["lora_a"] = 1e38 * adapter["lora_a"]
    np.testing.assert_array_equal(positive_hidden(huge), positive_hidden(second))


def test_errors_of_streams():
    params, (first, second) = make_params(PLAIN), two_adapters()
    stacked = lora.stack_adapters(first, second, scales=(1.0, 1.0))
    with pytest.raises(ConfigError, match="'attention/query' are of several models"):
        lora.merge(params, stacked, 1.0)
    deeper = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), second)
    with pytest.raises(ConfigError, match=r"for 'query' are of models of other sizes: .*\(2, \(17"):
        lora.stack_adapters(first, deeper, scales=(1.0, 1.0))
