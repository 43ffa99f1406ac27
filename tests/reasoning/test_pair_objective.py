"""Preference training over rows of pairs: the losses of single pairs, however they are laid out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from core_jax.losses import token_log_probs
from reasoning_jax.align.methods import Loss, MethodConfig, Row, WeightSource, row_method
from reasoning_jax.align.objective import preference_objective
from reasoning_jax.align.pair_rows import PairRows, PairRowsConfig, TokenPair
from reasoning_jax.data.packing import Layout, Overlong
from reasoning_jax.model import decoder_lm, lora, presets
from reasoning_jax.model.config import LoraConfig

MODEL = presets.tiny()
LORA = LoraConfig(rank=3, alpha=6.0, targets=("query", "down"))
SIZES = ((7, 5), (3, 11), (5, 2), (2, 3), (7, 7))
"""Tokens of the chosen and of the rejected sequence of each pair."""
LOSSES = tuple(Loss)
BETA = 0.7


@pytest.fixture(scope="module")
def params():
    return decoder_lm.init_params(MODEL, key=jax.random.key(1))


@pytest.fixture(scope="module")
def reference():
    return decoder_lm.init_params(MODEL, key=jax.random.key(2))


def make_pairs():
    draw = np.random.default_rng(0)
    pairs = []
    for sizes in SIZES:
        starts = [max(1, size // 3) for size in sizes]
        lengths = [size - start for size, start in zip(sizes, starts, strict=True)]
        pairs.append(
            TokenPair(
                token_ids=tuple(
                    draw.integers(0, MODEL.vocab_size, size).tolist() for size in sizes
                ),
                response_starts=tuple(starts),
                reference=tuple(-draw.uniform(1, 5, n).astype(np.float32) for n in lengths),
                weights=tuple(draw.uniform(0, 1, n).astype(np.float32) for n in lengths),
            )
        )
    return pairs


def make_batch(layout=Layout.PACKED, row_length=29, num_rows=5):
    rows = PairRows(make_pairs(), PairRowsConfig(row_length=row_length, layout=layout))
    assert len(rows) <= num_rows
    return next(rows.in_order(num_rows))


@jax.jit
def all_log_distributions(params, tokens):
    hidden = decoder_lm.apply(MODEL, params, decoder_lm.whole_rows(tokens)).hidden
    return jax.nn.log_softmax(decoder_lm.logits(MODEL, params, hidden))


def log_distributions(params, ids):
    """Of a sequence alone; what stands behind its end changes nothing before it."""
    padded = jnp.asarray([list(ids) + [0] * (11 - len(ids))])
    return np.asarray(all_log_distributions(params, padded), np.float64)[0, : len(ids)]


def log_sigmoid(value):
    return -np.log1p(np.exp(-value))


def expected_loss(pair, params, reference, loss):
    """A pair's loss in NumPy, from whole distributions and one sequence at a time."""
    ratios, log_probs, divergences = [], [], []
    for ids, start, under in zip(pair.token_ids, pair.response_starts, pair.reference, strict=True):
        places = np.arange(start - 1, len(ids) - 1)
        ours = log_distributions(params, ids)[places]
        theirs = log_distributions(reference, ids)[places]
        log_probs.append(ours[np.arange(len(places)), ids[start:]])
        ratios.append(log_probs[-1] - under)
        divergences.append(np.sum(np.exp(theirs) * (theirs - ours)))
    weighed = [w * r for w, r in zip(pair.weights, ratios, strict=True)]
    margin = BETA * (weighed[0].sum() - weighed[1].sum())
    nll = -log_probs[0].mean()
    if loss is Loss.SFT:
        return nll
    if loss is Loss.POSITION:
        size = max(map(len, weighed))
        padded = [np.pad(one, (0, size - len(one))) for one in weighed]
        return -log_sigmoid(BETA * (padded[0] - padded[1])).mean()
    if loss is Loss.RPO:
        return -log_sigmoid(margin) + 0.5 * nll
    factor = {Loss.DPO: 0.0, Loss.TDPO1: 1.0, Loss.TDPO2: 0.25}[loss]
    return -log_sigmoid(margin - BETA * factor * (divergences[1] - divergences[0]))


@functools.cache
def objective(loss, **arguments):
    method = MethodConfig(loss=loss, beta=BETA, nll_weight=0.5, alpha=0.25)
    function = functools.partial(
        preference_objective, config=MODEL, method=method, chunk=5, **arguments
    )
    return jax.jit(function)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_that_of_each_pair_alone(params, reference, loss):
    expected = [expected_loss(pair, params, reference, loss) for pair in make_pairs()]
    found, _ = objective(loss)(params, make_batch(), frozen=reference)
    assert int(found.count) == len(SIZES)
    np.testing.assert_allclose(found.total, np.sum(expected), rtol=2e-5)


def test_gradients_do_not_depend_on_the_layout(params, reference):
    def gradient(batch):
        return jax.grad(lambda p: objective(Loss.TDPO2)(p, batch, frozen=reference)[0].total)(
            params
        )

    packed, apart = gradient(make_batch()), gradient(make_batch(Layout.ONE_PER_ROW))
    for one, other in zip(jax.tree.leaves(packed), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_adapters_train_the_adapted_model(params):
    """The loss of adapters beside a model is that of the merged model."""
    adapters = lora.init_lora(MODEL, LORA, key=jax.random.key(3))
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
    batch = make_batch()
    beside, _ = objective(Loss.DPO, lora=LORA)(adapters, batch, frozen=params)
    merged, _ = objective(Loss.DPO)(lora.merge(params, adapters, LORA.scale), batch)
    np.testing.assert_allclose(beside.total, merged.total, rtol=1e-5)


def test_metrics_are_sums_over_responses(params, reference):
    _, metrics = objective(Loss.DPO)(params, make_batch(), frozen=reference)
    pairs = make_pairs()
    sums = [0.0, 0.0]
    for pair in pairs:
        for side in (0, 1):
            ids, start = jnp.asarray(pair.token_ids[side]), pair.response_starts[side]
            logs = jnp.asarray(log_distributions(params, pair.token_ids[side]), jnp.float32)
            sums[side] += float(token_log_probs(logs[start - 1 : -1], ids[start:]).sum())
    for side, name in enumerate(("chosen", "rejected")):
        found = metrics[f"{name}_log_prob"]
        np.testing.assert_allclose(found.total / found.count, sums[side] / len(pairs), rtol=1e-5)
    weights = np.concatenate([pair.weights[1] for pair in pairs])
    found = metrics["rejected_weight"]
    np.testing.assert_allclose(found.total / found.count, weights.mean(), rtol=1e-6)


def test_empty_rows_count_for_nothing(params):
    few, many = make_batch(num_rows=5), make_batch(num_rows=7)
    one, _ = objective(Loss.DPO)(params, few)
    other, _ = objective(Loss.DPO)(params, many)
    np.testing.assert_allclose(one.total, other.total, rtol=1e-6)
    assert int(one.count) == int(other.count) == len(SIZES)


def test_a_tdpo_loss_needs_the_reference(params):
    with pytest.raises(ConfigError, match="tdpo1 runs a model that is not trained"):
        objective(Loss.TDPO1)(params, make_batch())


def test_adapters_need_their_model(params):
    with pytest.raises(ConfigError, match="adapters stand beside"):
        objective(Loss.DPO, lora=LORA)(params, make_batch())


def test_numbers_of_other_tokens_are_refused():
    pair = make_pairs()[0]
    with pytest.raises(DataError, match=r"rejected response has 4 tokens, 4 .* and 3 weights"):
        dataclasses.replace(pair, weights=(pair.weights[0], pair.weights[1][:-1]))


def test_a_pair_that_no_row_holds_is_refused_or_counted():
    with pytest.raises(DataError, match=r"2 of 5 pairs have more tokens than rows\.row_length 13"):
        PairRows(make_pairs(), PairRowsConfig(row_length=13))
    rows = PairRows(make_pairs(), PairRowsConfig(row_length=13, overlong=Overlong.DROP))
    assert (rows.report.num_pairs, rows.report.num_overlong) == (3, 2)
    with pytest.raises(DataError, match="there is no pair to lay into rows of 4 tokens"):
        PairRows(make_pairs(), PairRowsConfig(row_length=4, overlong=Overlong.DROP))


def test_every_row_of_the_table_has_a_method_but_the_baseline():
    assert [row for row in Row if row_method(row) is None] == [Row.BASELINE]


def test_fine_tuning_has_no_pairs_to_weigh():
    with pytest.raises(ConfigError, match="set it to uniform"):
        MethodConfig(loss=Loss.SFT, source=WeightSource.CONTRAST)
