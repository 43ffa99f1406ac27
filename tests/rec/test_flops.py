"""FLOPs of a pass: counted matrix by matrix for one small model."""

import dataclasses

import pytest

from core_jax.nn.feed_forward import Activation
from rec_jax.model.config import OneRecConfig
from rec_jax.model.flops import forward_flops, generation_flops, train_flops

MODEL = OneRecConfig(
    level_sizes=(11, 13),
    history_items=7,
    session_items=5,
    d_model=6,
    num_heads=2,
    head_dim=3,
    d_ff=17,
    num_encoder_layers=1,
    num_decoder_layers=1,
    num_experts=19,
    experts_per_token=2,
    d_expert=23,
    activation=Activation.RELU,
)


def _products(rows: int, inner: int, columns: int) -> int:
    """FLOPs of one matrix product."""
    return 2 * rows * inner * columns


def test_forward_flops_are_the_sum_over_all_matrix_products():
    """S = 21 history tokens, T = 15 session tokens, D = H X = 6."""
    history, session, width = 21, 15, 6
    attention = 2 * _products(history, width, history)
    encoder = 4 * _products(history, width, width) + attention + 2 * _products(history, width, 17)
    own = 4 * _products(session, width, width) + 2 * _products(session, width, session)
    cross = 2 * _products(session, width, width) + 2 * _products(history, width, width)
    cross += 2 * _products(session, width, history)
    experts = 2 * 2 * _products(session, width, 23) + _products(session, width, 19)
    outputs = _products(5, width, 11) + _products(5, width, 13)
    expected = encoder + own + cross + experts + outputs
    assert forward_flops(MODEL, 1) == expected
    assert forward_flops(MODEL, 3) == 3 * expected
    assert train_flops(MODEL, 3) == 9 * expected


def test_beams_share_the_history():
    """One beam is a forward pass; every further one adds a session and no history."""
    one, two, five = (generation_flops(MODEL, beams) for beams in (1, 2, 5))
    assert one == forward_flops(MODEL, 1)
    assert five - two == pytest.approx(3 * (two - one))
    longer = dataclasses.replace(MODEL, num_encoder_layers=2)
    assert generation_flops(longer, 5) - five == generation_flops(longer, 1) - one
