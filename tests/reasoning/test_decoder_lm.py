"""The decoder: causality, packing, padding, grouped heads, and one model in several forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.nn.flash_attention import AttentionKernel
from core_jax.nn.stack import Remat
from core_jax.sharding import describe, match_rules
from reasoning_jax.model import decoder_lm
from reasoning_jax.model.attention import attend_causally
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.model.decoder_lm import TokenInputs, whole_rows
from reasoning_jax.model.presets import MODELS
from reasoning_jax.model.shardings import RULES
from tests.golden_files import check_golden
from tests.reasoning.model_cases import (
    ALL_HEADS,
    BIASED,
    CONFIGS,
    PLAIN,
    in_bfloat16,
    make_params,
    make_tokens,
)


def logits_of(config, params, inputs, **options):
    return decoder_lm.logits(
        config, params, decoder_lm.apply(config, params, inputs, **options).hidden
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_as_many_as_the_config_says(name):
    params = make_params(CONFIGS[name])
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == CONFIGS[name].num_params


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("smollm2-135m", 0.134515),
        ("llama3-8b", 8.030261),
        ("llama3-70b", 70.553706),
        ("llama3.2-1b", 1.235814),
        ("deepseek-math-7b", 6.910366),
        ("qwen2.5-0.5b", 0.494033),
        ("qwen2.5-7b", 7.615617),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, billions):
    assert MODELS[name]().num_params == pytest.approx(billions * 1e9, rel=1e-6)


def test_a_token_sees_itself_and_earlier_tokens_only():
    """d logits[t] / d embedding of token s is zero for s > t, and not for s <= t."""
    params = make_params(PLAIN)
    tokens = jnp.arange(11)[None]  # all different: the table's rows are the inputs

    def scores(table):
        return jnp.sum(
            logits_of(PLAIN, params | {"embed": {"table": table}}, whole_rows(tokens))[0] ** 2,
            axis=-1,
        )

    jacobian_TVD = jax.jacobian(scores)(params["embed"]["table"])
    reach_TS = np.abs(jacobian_TVD[:, :11]).max(axis=-1) > 0
    np.testing.assert_array_equal(reach_TS, np.tril(np.ones((11, 11), bool)))


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_rows_equal_rows_of_their_own(name):
    config = CONFIGS[name]
    params, tokens = make_params(config), make_tokens(config, 1, 23)
    lengths = (5, 11, 7)
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    segments = np.repeat([1, 2, 3], lengths)[None]
    inputs = TokenInputs(
        tokens=tokens, positions=jnp.asarray(positions), segment_ids=jnp.asarray(segments)
    )
    packed = logits_of(config, params, inputs)
    start = 0
    for length in lengths:
        alone = logits_of(config, params, whole_rows(tokens[:, start : start + length]))
        np.testing.assert_allclose(packed[:, start : start + length], alone, rtol=0, atol=1e-5)
        start += length


def test_left_padded_rows_equal_unpadded_ones():
    params, tokens = make_params(PLAIN), make_tokens(PLAIN, 2, 7)
    padded = jnp.pad(tokens, ((0, 0), (5, 0)))
    positions = jnp.maximum(jnp.arange(12) - 5, 0)[None].repeat(2, axis=0)
    segments = (jnp.arange(12) >= 5).astype(jnp.int32)[None].repeat(2, axis=0)
    left = logits_of(
        PLAIN, params, TokenInputs(tokens=padded, positions=positions, segment_ids=segments)
    )
    np.testing.assert_allclose(
        left[:, 5:], logits_of(PLAIN, params, whole_rows(tokens)), rtol=0, atol=1e-5
    )


def test_right_padding_changes_nothing_before_it():
    params, tokens = make_params(PLAIN), make_tokens(PLAIN, 2, 13)
    lengths = jnp.asarray([7, 13])
    padded = logits_of(PLAIN, params, whole_rows(tokens, lengths))
    alone = logits_of(PLAIN, params, whole_rows(tokens[:1, :7]))
    np.testing.assert_allclose(padded[:1, :7], alone, rtol=0, atol=1e-5)


def test_key_heads_serve_neighbouring_query_heads():
    """Grouped heads equal all heads whose key kernels are repeated G times in a row."""
    grouped = make_params(PLAIN)
    attention = dict(grouped["layers"]["attention"])
    for name in ("key", "value"):
        attention[name] = {"kernel": jnp.repeat(attention[name]["kernel"], 2, axis=2)}
    repeated = grouped | {"layers": grouped["layers"] | {"attention": attention}}
    inputs = whole_rows(make_tokens(PLAIN, 2, 13))
    np.testing.assert_allclose(
        logits_of(PLAIN, grouped, inputs),
        logits_of(ALL_HEADS, repeated, inputs),
        rtol=0,
        atol=1e-5,
    )


def test_attention_scores_depend_on_relative_positions_alone():
    params, tokens = make_params(PLAIN), make_tokens(PLAIN, 1, 13)
    inputs = whole_rows(tokens)
    moved = dataclasses.replace(inputs, positions=inputs.positions + 101)
    np.testing.assert_allclose(
        logits_of(PLAIN, params, inputs), logits_of(PLAIN, params, moved), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("remat", Remat)
@pytest.mark.parametrize("unroll", [pytest.param(1, marks=pytest.mark.long), 2])
def test_remat_and_unrolling_change_nothing(remat, unroll):
    config = dataclasses.replace(BIASED, remat=remat, unroll=unroll)
    params, inputs = make_params(BIASED), whole_rows(make_tokens(BIASED, 2, 7))

    def loss(config):
        return lambda params: jnp.mean(jax.nn.logsumexp(logits_of(config, params, inputs), -1))

    expected, expected_grad = jax.value_and_grad(loss(BIASED))(params)
    found, found_grad = jax.value_and_grad(loss(config))(params)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), found_grad, expected_grad
    )


def test_bfloat16_computes_close_to_float32_and_gives_float32_logits():
    params, inputs = make_params(PLAIN), whole_rows(make_tokens(PLAIN, 2, 13))
    exact = logits_of(PLAIN, params, inputs)
    half = logits_of(in_bfloat16(PLAIN), params, inputs)
    assert half.dtype == jnp.float32
    assert 0 < float(jnp.abs(half - exact).max()) < 0.1 * float(jnp.abs(exact).max())


def test_keys_and_values_come_out_rotated_per_layer():
    params, inputs = make_params(PLAIN), whole_rows(make_tokens(PLAIN, 2, 7))
    output = decoder_lm.apply(PLAIN, params, inputs, with_keys_values=True)
    assert [part.shape for part in output.keys_values] == [(2, 2, 7, 3, 10)] * 2
    assert decoder_lm.apply(PLAIN, params, inputs).keys_values is None


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"data": 8}, marks=pytest.mark.long),
        {"data": 2, "fsdp": 2, "tensor": 2},
        pytest.param({"fsdp": 4, "tensor": 2}, marks=pytest.mark.long),
    ],
)
def test_sharded_equals_one_device(sizes):
    config = DecoderConfig(
        vocab_size=264,
        model_dim=16,
        hidden_dim=24,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        qkv_bias=True,
    )
    params, inputs = make_params(config), whole_rows(make_tokens(config, 8, 11))
    mesh = make_mesh(MeshConfig(**sizes))
    placed = jax.device_put(params, match_rules(RULES, params, mesh))

    def loss(params, mesh):
        return jnp.mean(jax.nn.logsumexp(logits_of(config, params, inputs, mesh=mesh), -1))

    expected, expected_grad = jax.value_and_grad(lambda params: loss(params, None))(params)
    found, found_grad = jax.jit(jax.value_and_grad(lambda params: loss(params, mesh)))(placed)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found_grad,
        expected_grad,
    )


def test_sharding_table_of_llama3_70b():
    """Where each leaf lives on 8 devices; no memory is taken."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    config = MODELS["llama3-70b"]()
    abstract = jax.eval_shape(lambda: decoder_lm.init_params(config, key=jax.random.key(0)))
    check_golden(
        "shardings_llama3_70b.txt", describe(abstract, match_rules(RULES, abstract, mesh)) + "\n"
    )


def test_attention_names_what_a_kernel_cannot_take():
    queries = jnp.zeros((2, 7, 6, 10))
    keys = jnp.zeros((2, 7, 3, 10))
    segments = jnp.ones((2, 7), jnp.int32)
    with pytest.raises(ConfigError, match="splash kernel takes lengths that 128 divides"):
        attend_causally(queries, keys, keys, segment_ids=segments, kernel=AttentionKernel.SPLASH)
    with pytest.raises(ConfigError, match="takes bfloat16 or float16, not float32"):
        attend_causally(queries, keys, keys, segment_ids=segments, kernel=AttentionKernel.CUDNN)


def test_the_tpu_kernel_lowers_forward_and_backward():
    """Lowering for a TPU needs none: the kernel's call must stand in the module."""
    config = in_bfloat16(dataclasses.replace(PLAIN, head_dim=64, max_positions=256))
    abstract = jax.eval_shape(lambda: decoder_lm.init_params(config, key=jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((2, 128), jnp.int32)

    def loss(params, tokens):
        output = decoder_lm.apply(config, params, whole_rows(tokens), kernel=AttentionKernel.SPLASH)
        return jnp.sum(output.hidden.astype(jnp.float32))

    exported = jax.export.export(
        jax.jit(jax.grad(loss)),
        platforms=["tpu"],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("tpu_custom_call")],
    )(abstract, tokens)
    assert exported.mlir_module().count("tpu_custom_call") == 3  # forward, two parts of backward


def test_rows_longer_than_the_context_are_refused():
    config = dataclasses.replace(PLAIN, max_positions=5)
    with pytest.raises(
        ConfigError, match=r"rows of 7 tokens are longer than model\.max_positions, 5"
    ):
        decoder_lm.apply(config, make_params(config), whole_rows(make_tokens(config, 1, 7)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "model.num_layers is 0; it must be at least 1"),
        ({"num_kv_heads": 4}, "model.num_heads is 6, which model.num_kv_heads, 4, does not divide"),
        ({"head_dim": 7}, "model.head_dim is 7; rotary positions turn pairs"),
    ],
)
def test_config_errors(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(PLAIN, **change)
