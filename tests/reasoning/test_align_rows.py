"""Every row of the table trains: one small step along its gradient lowers its loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax.align.methods import MethodConfig, Row, WeightSource, row_method
from reasoning_jax.align.objective import preference_objective
from reasoning_jax.align.pair_rows import PairRows, PairRowsConfig, TokenPair
from reasoning_jax.align.pair_weights import pair_weights
from reasoning_jax.model import decoder_lm, presets
from tests.reasoning.test_pair_weights import PAIRS, PROMPT, REFERENCE, given

MODEL = presets.tiny()
STEP = 1e-3
BREAK = PAIRS[0].chosen.token_ids[PROMPT]
"""Ends a line, so that the step mask leaves some tokens out."""


@pytest.fixture(scope="module")
def models():
    """The policy, and a reference that it has moved away from."""
    return [decoder_lm.init_params(MODEL, key=jax.random.key(seed)) for seed in (0, 1)]


def make_batch(method):
    inputs = given(is_break=lambda token: token == BREAK)

    def under_reference(one):
        return np.asarray(REFERENCE[one.key], np.float32)

    pairs = [
        TokenPair(
            token_ids=(pair.chosen.token_ids, pair.rejected.token_ids),
            response_starts=(PROMPT, PROMPT),
            reference=(under_reference(pair.chosen), under_reference(pair.rejected)),
            weights=weights,
        )
        for pair, weights in zip(PAIRS, pair_weights(PAIRS, method, inputs, seed=7), strict=True)
    ]
    return next(PairRows(pairs, PairRowsConfig(row_length=41)).in_order(2))


@functools.cache
def loss_and_gradient(method):
    """Compiled once for all rows of one loss, which differ in their weights alone."""

    def loss(params, batch, reference):
        frozen = reference if method.needs_reference_pass else None
        ratio, _ = preference_objective(
            params, batch, config=MODEL, method=method, chunk=7, frozen=frozen
        )
        return ratio.total / ratio.count

    return jax.jit(jax.value_and_grad(loss))


SOON = (Row.SFT, Row.DPO, Row.CDPO, Row.CDPO_CODE)
"""Rows that are trained in every run of the tests; the others in the long one."""


def plain(method):
    """The loss alone, at one inverse temperature; the rest of a method is in the weights."""
    return MethodConfig(loss=method.loss, beta=1.0)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=() if row in SOON else pytest.mark.long)
        for row in Row
        if row is not Row.BASELINE
    ],
)
def test_a_step_lowers_the_loss(row, models):
    policy, reference = models
    method = row_method(row)
    assert method is not None
    batch, function = make_batch(method), loss_and_gradient(plain(method))
    before, gradient = function(policy, batch, reference)
    norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
    assert 1e-3 < norm < 1e4
    moved = jax.tree.map(lambda leaf, slope: leaf - STEP / norm * slope, policy, gradient)
    after, _ = function(moved, batch, reference)
    # As far as the slope says, but for what is bent.
    np.testing.assert_allclose(before - after, STEP * norm, rtol=0.05, atol=2e-6)


def test_rows_of_one_loss_differ_in_their_weights(models):
    """No two of them have the same gradient."""
    policy, reference = models
    found = {}
    for row in Row:
        method = row_method(row)
        if method is None or method.source is WeightSource.UNIFORM:
            continue
        _, gradient = loss_and_gradient(plain(method))(policy, make_batch(method), reference)
        found[row] = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
    assert len(found) == 10
    for one in found:
        for other in found:
            same = one is other
            assert same == np.allclose(found[one], found[other], rtol=1e-3, atol=1e-6), (one, other)
