"""SFT: the loss of the responses alone, however rows are laid out, full and by adapters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from core_jax.losses import token_log_probs
from reasoning_jax.data.packing import Layout, PackedRows, PackingConfig, TokenExample
from reasoning_jax.model import decoder_lm, lora, presets
from reasoning_jax.model.config import LoraConfig
from reasoning_jax.objectives import sft_objective

MODEL = presets.tiny()
LORA = LoraConfig(rank=3, alpha=6.0, targets=("query", "down"))
LENGTHS = (7, 5, 11, 3, 2)
ROW_LENGTH = 13


@pytest.fixture(scope="module")
def params():
    return decoder_lm.init_params(MODEL, key=jax.random.key(1))


def make_examples():
    generator = np.random.default_rng(0)
    return [
        TokenExample(
            token_ids=generator.integers(0, MODEL.vocab_size, length).tolist(),
            response_start=max(1, length // 3),
        )
        for length in LENGTHS
    ]


def make_batch(layout=Layout.PACKED, num_rows=4):
    """All examples in one batch that ends in rows of padding."""
    rows = PackedRows(make_examples(), PackingConfig(row_length=ROW_LENGTH, layout=layout))
    assert len(rows) < num_rows
    return next(rows.in_order(num_rows))


@functools.cache
def objective(**arguments):
    return jax.jit(functools.partial(sft_objective, config=MODEL, chunk=4, **arguments))


def test_loss_is_that_of_each_response_alone(params):
    """Each example on its own, whole logits, the terms from its response's first token on."""

    @jax.jit
    def alone(params, tokens, lengths):
        hidden = decoder_lm.apply(MODEL, params, decoder_lm.whole_rows(tokens, lengths)).hidden
        return decoder_lm.logits(MODEL, params, hidden)

    total, count, right = 0.0, 0, 0
    for example in make_examples():
        length = len(example.token_ids)
        row = np.zeros((1, ROW_LENGTH), np.int32)
        row[0, :length] = example.token_ids
        logits = alone(params, row, np.array([length]))[0, : length - 1]
        targets = jnp.asarray(example.token_ids[1:])
        first = example.response_start - 1
        total -= float(jnp.sum(token_log_probs(logits, targets)[first:]))
        right += int(jnp.sum((jnp.argmax(logits, axis=-1) == targets)[first:]))
        count += len(example.token_ids) - example.response_start
    loss, metrics = objective()(params, make_batch())
    assert float(loss.count) == count
    assert float(loss.total) == pytest.approx(total, rel=1e-5)
    assert float(metrics["token_accuracy"].total) == right
    assert float(metrics["token_accuracy"].count) == count


def test_packed_loss_and_gradient_equal_unpacked(params):
    batches = make_batch(Layout.PACKED, 7), make_batch(Layout.ONE_PER_ROW, 7)
    assert batches[0].segment_ids.max() > 1 == batches[1].segment_ids.max()
    grad = jax.jit(
        jax.value_and_grad(
            lambda params, batch: sft_objective(params, batch, config=MODEL, chunk=4)[0].total
        )
    )
    (packed, packed_grad), (single, single_grad) = (grad(params, batch) for batch in batches)
    assert float(packed) == pytest.approx(float(single), rel=1e-5)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5),
        packed_grad,
        single_grad,
    )


def test_prompts_and_padding_are_not_learnt(params):
    """What stands where the mask is False as a target, or at padding, changes nothing."""
    batch = make_batch()
    other = dataclasses.replace(
        batch,
        tokens=np.where(batch.segment_ids > 0, batch.tokens, 7),
        targets=np.where(batch.loss_mask, batch.targets, 11),
    )
    assert float(objective()(params, batch)[0].total) == float(objective()(params, other)[0].total)


def test_fresh_adapters_give_the_loss_of_the_base_and_only_they_get_a_gradient(params):
    adapters = lora.init_lora(MODEL, LORA, key=jax.random.key(2))
    batch = make_batch()
    run = objective(lora=LORA)
    loss, _ = run(adapters, batch, frozen=params)
    assert float(loss.total) == pytest.approx(float(objective()(params, batch)[0].total), rel=1e-6)
    grads = jax.grad(lambda adapters: run(adapters, batch, frozen=params)[0].total)(adapters)
    assert jax.tree.structure(grads) == jax.tree.structure(adapters)
    assert float(jnp.max(jnp.abs(grads["layers"]["mlp"]["down"]["lora_b"]))) > 0


def test_trained_adapters_give_the_loss_of_the_merged_model(params):
    adapters = lora.init_lora(MODEL, LORA, key=jax.random.key(2))
    adapters = jax.tree.map(lambda leaf: leaf + 0.01, adapters)
    batch = make_batch()
    loss, _ = objective(lora=LORA)(adapters, batch, frozen=params)
    merged, _ = objective()(lora.merge(params, adapters, LORA.scale), batch)
    assert float(loss.total) == pytest.approx(float(merged.total), rel=1e-5)
    assert float(loss.total) != pytest.approx(float(objective()(params, batch)[0].total), rel=1e-5)


def test_adapters_need_a_base_and_a_scale(params):
    batch = make_batch()
    with pytest.raises(ConfigError, match="lora is given but frozen is not"):
        sft_objective(params, batch, config=MODEL, chunk=4, lora=LORA)
    with pytest.raises(ConfigError, match="frozen is given but lora is not"):
        sft_objective(params, batch, config=MODEL, chunk=4, frozen=params)
