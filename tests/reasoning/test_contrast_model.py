"""Scores of packed rows: two streams, two whole models, several betas, one model's log-probs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.contrast import chunked_contrast_scores
from core_jax.data.pipeline import to_device
from core_jax.losses import token_log_probs
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.nn import flash_attention
from core_jax.nn.flash_attention import AttentionKernel
from core_jax.sharding import match_rules
from reasoning_jax.align.contrast_model import (
    AdapterPair,
    FullPair,
    log_prob_batch,
    score_batch,
    score_name,
)
from reasoning_jax.data.packing import PackedRows, PackingConfig, TokenExample
from reasoning_jax.model import attention, decoder_lm, lora
from reasoning_jax.model.config import LoraConfig
from reasoning_jax.model.shardings import RULES
from tests.reasoning.model_cases import PLAIN, SCALED, make_params
from tests.reasoning.test_lora import trained

LORAS = (
    LoraConfig(rank=3, alpha=12.0),
    LoraConfig(rank=5, alpha=7.0, targets=("query", "out", "down")),
)
SCALES = LORAS[0].scale, LORAS[1].scale
BETAS = (0.0, 1.0, 2.5)
LENGTH = 23
"""Tokens of a row."""


def adapters_of(config):
    keys = jax.random.key(1), jax.random.key(2)
    return [
        trained(lora.init_lora(config, one, key=key), seed=number)
        for number, (one, key) in enumerate(zip(LORAS, keys, strict=True))
    ]


def pairs_of(config):
    """The same two models as adapters over one base, and merged.

    With logits of half the size: beta = 2.5 multiplies what products in another order round by six,
    and scores of 20 nats have no fifth decimal in float32.
    """
    params, adapters = make_params(config), adapters_of(config)
    last = "head" if "head" in params else "embed"
    params = params | {last: jax.tree.map(lambda leaf: leaf / 2, params[last])}
    merged = [lora.merge(params, one, s) for one, s in zip(adapters, SCALES, strict=True)]
    stacked = lora.stack_adapters(*adapters, scales=SCALES)
    return (
        AdapterPair(base=params, adapters=stacked),
        FullPair(positive=merged[0], negative=merged[1]),
    )


def packed_batch(num_rows=3, length=LENGTH):
    rng = np.random.default_rng(3)
    examples = [
        TokenExample(token_ids=rng.integers(0, 263, size).tolist(), response_start=2)
        for size in (5, 7, 11, 13, 17)
    ]
    rows = PackedRows(examples, PackingConfig(row_length=length))
    return jax.tree.map(jnp.asarray, next(rows.in_order(num_rows)))


def wanted_everywhere(batch):
    """Rows of which every place is to be scored."""
    return dataclasses.replace(batch, loss_mask=jnp.ones_like(batch.loss_mask))


@pytest.mark.parametrize("config", [PLAIN, SCALED], ids=["head", "tied"])
def test_two_streams_score_as_two_merged_models(config):
    batch = packed_batch()
    streams, whole = (
        score_batch(config, pair, batch, LENGTH, chunk=7, betas=BETAS) for pair in pairs_of(config)
    )
    assert set(streams) == {"positive", "negative", *map(score_name, BETAS)}
    for name, values in streams.items():
        np.testing.assert_allclose(values, whole[name], rtol=0, atol=1e-5)


def test_all_betas_of_one_pass_are_those_of_one_each():
    """log s at beta 0 is the positive model's log-probability; the others as core_jax has them."""
    batch = wanted_everywhere(packed_batch())
    pair = pairs_of(PLAIN)[1]
    values = score_batch(PLAIN, pair, batch, LENGTH, chunk=7, betas=BETAS)
    np.testing.assert_allclose(values["log_score@0.0"], values["positive"], rtol=0, atol=1e-6)
    inputs = decoder_lm.TokenInputs(
        tokens=batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids
    )
    hidden = [
        decoder_lm.apply(PLAIN, params, inputs).hidden for params in (pair.positive, pair.negative)
    ]
    heads = [decoder_lm.output_matrix(params) for params in (pair.positive, pair.negative)]
    for beta in BETAS:
        expected = chunked_contrast_scores(*hidden, *heads, batch.targets, chunk=5, beta=beta)
        np.testing.assert_allclose(values[score_name(beta)], expected.log_scores, rtol=0, atol=1e-5)
        np.testing.assert_allclose(values["negative"], expected.negative, rtol=0, atol=1e-5)


def test_log_probs_are_those_of_the_whole_logits():
    batch, params = wanted_everywhere(packed_batch()), make_params(PLAIN)
    inputs = decoder_lm.TokenInputs(
        tokens=batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids
    )
    hidden = decoder_lm.apply(PLAIN, params, inputs).hidden
    expected = token_log_probs(decoder_lm.logits(PLAIN, params, hidden), jnp.asarray(batch.targets))
    values = log_prob_batch(PLAIN, params, batch, LENGTH, chunk=7)
    np.testing.assert_allclose(values["log_prob"], expected, rtol=0, atol=1e-5)


def test_how_many_places_are_made_room_for_changes_nothing():
    """As many as the fullest row predicts, or more; prompts and padding have 0."""
    batch, pair = packed_batch(), pairs_of(PLAIN)[0]
    most = int(batch.loss_mask.sum(axis=1).max())
    assert most < LENGTH - 2, "else nothing would be left out"
    scored = functools.partial(score_batch, PLAIN, pair, batch, chunk=7, betas=BETAS)
    of_one = functools.partial(log_prob_batch, PLAIN, pair.base, batch, chunk=7)
    for function in (scored, of_one):
        everywhere = function(LENGTH)
        for num_predictions in (most, most + 2):
            found = function(num_predictions)
            assert set(found) == set(everywhere)
            for name, values in found.items():
                np.testing.assert_allclose(values, everywhere[name], rtol=0, atol=1e-6)
                assert np.all(np.asarray(values)[~batch.loss_mask] == 0)


def test_logits_are_made_of_predictions_alone():
    """13 places of 23, in two blocks: 7 each and not 10, which are allowed."""
    pair, batch = pairs_of(PLAIN)[0], packed_batch()

    def scored(pair, batch):
        return score_batch(PLAIN, pair, batch, 13, chunk=10, betas=(1.0,))

    products = [
        line
        for line in str(jax.make_jaxpr(scored)(pair, batch)).splitlines()
        if "dot_general" in line and ",263]" in line
    ]
    assert len(products) == 2 and all("[3,7,263]" in line for line in products)


@pytest.mark.parametrize("is_kernel_per_device", [False, True])
def test_sharded_equals_one_device(monkeypatch, is_kernel_per_device):
    """Also where attention runs device by device, as the kernels of GPUs and TPUs do."""
    # A width that 2 divides: it is split over fsdp here.
    config = dataclasses.replace(PLAIN, model_dim=14, hidden_dim=38, vocab_size=266)
    wrapped = []
    pair, batch = pairs_of(config)[0], packed_batch(num_rows=4)
    chunk = 5 if is_kernel_per_device else 7  # what is compiled once is not traced again
    expected = score_batch(config, pair, batch, 20, chunk=chunk, betas=BETAS)
    if is_kernel_per_device:
        plain = attention._einsum

        def device_by_device(is_causal, *arrays):
            assert is_causal
            wrapped.append([array.shape for array in arrays])
            return plain(*arrays[:-1])  # segments of queries and of keys are the same here

        monkeypatch.setattr(attention, "choose_kernel", lambda *_: AttentionKernel.SPLASH)
        monkeypatch.setattr(flash_attention, "_splash", device_by_device)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=1), jax.devices()[:4])
    shardings = match_rules(RULES, jax.eval_shape(lambda: pair), mesh)
    values = score_batch(
        config,
        jax.device_put(pair, shardings),
        to_device(jax.tree.map(np.asarray, batch), mesh),
        20,
        chunk=chunk,
        betas=BETAS,
        mesh=mesh,
    )
    # Both copies of the one row that each of the 4 devices has.
    assert all(shapes[0] == (2, 23, 6, 10) for shapes in wrapped)
    assert bool(wrapped) is is_kernel_per_device
    for name, found in values.items():
        assert found.sharding.is_fully_replicated
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=1e-5)


def test_the_base_is_applied_once_to_the_rows_of_both_streams():
    """One product per map and layer, of twice the rows; its weights enter once, unrepeated."""
    pair, batch = pairs_of(PLAIN)[0], packed_batch()
    text = str(
        jax.make_jaxpr(lambda p, b: score_batch(PLAIN, p, b, LENGTH, chunk=7, betas=(1.0,)))(
            pair, batch
        )
    )
    products = [line for line in text.splitlines() if "dot_general" in line]
    gates = [line for line in products if ":f32[6,23,37]" in line]
    assert len(gates) == 2 * 2, "gate and up: the base's product and the adapter's, once each"
