"""The encoder by a flash kernel is the encoder by plain products; the TPU's kernel, interpreted."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention

from core_jax.errors import ConfigError
from core_jax.nn.flash_attention import AttentionKernel
from core_jax.nn.linear import ComputeDtype
from core_jax.nn.stack import Remat
from rec_jax.batch import SessionBatch
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.objectives import next_token_loss

CONFIG = OneRecConfig(
    level_sizes=(11, 7, 5),
    history_items=32,
    session_items=2,
    d_model=26,
    num_heads=2,
    head_dim=64,
    d_ff=37,
    num_encoder_layers=2,
    num_decoder_layers=1,
    num_experts=3,
    experts_per_token=2,
    d_expert=19,
    attention_kernel=AttentionKernel.EINSUM,
)
"""32 items of 4 tokens are the 128 tokens that the kernel takes; heads are as wide as it asks."""
SPLASH = dataclasses.replace(CONFIG, attention_kernel=AttentionKernel.SPLASH)


@pytest.fixture
def interpreted(monkeypatch):
    made = splash_attention.make_splash_mqa_single_device
    monkeypatch.setattr(
        splash_attention, "make_splash_mqa_single_device", functools.partial(made, interpret=True)
    )


@functools.cache
def params():
    return jax.jit(functools.partial(onerec.init_params, CONFIG))(key=jax.random.key(3))


def batch():
    """A whole history, padding in front, and none at all."""
    rng = np.random.default_rng(0)

    def codes(length):
        levels = [rng.integers(0, size, (3, length)) for size in CONFIG.level_sizes]
        return jnp.asarray(np.stack(levels, axis=-1), jnp.int32)

    return SessionBatch(
        history_codes=codes(CONFIG.history_items),
        history_mask=jnp.asarray(np.arange(CONFIG.history_items) >= np.asarray([[0], [13], [32]])),
        target_codes=codes(CONFIG.session_items),
        target_mask=jnp.ones((3, CONFIG.session_items), bool),
    )


def loss_and_gradient(config):
    def mean_loss(params):
        loss, _ = next_token_loss(config, None, params, batch())
        return loss.total / loss.count

    return jax.jit(jax.value_and_grad(mean_loss))(params())


def test_loss_and_gradient_are_those_of_the_plain_encoder(interpreted):
    """Padding included: all is finite, and nothing but rounding differs."""
    loss, gradient = loss_and_gradient(CONFIG)
    found, found_gradient = loss_and_gradient(dataclasses.replace(SPLASH, remat=Remat.FULL))
    assert float(found) == pytest.approx(float(loss), rel=1e-5)
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(found_gradient), strict=True
    ):
        scale = np.abs(one).max() + 1e-8
        np.testing.assert_allclose(other / scale, one / scale, atol=2e-5, err_msg=str(path))


def test_the_train_step_of_a_tpu_has_the_kernel():
    """Lowering for a TPU needs none: forward and both parts of backward, once per scanned layer."""
    config = dataclasses.replace(SPLASH, compute_dtype=ComputeDtype.BFLOAT16)

    def loss(params, batch):
        return next_token_loss(config, None, params, batch)[0].total

    exported = jax.export.export(
        jax.jit(jax.grad(loss)),
        platforms=["tpu"],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("tpu_custom_call")],
    )(params(), batch())
    assert exported.mlir_module().count("tpu_custom_call") == 3


def test_a_history_that_the_kernel_does_not_take_is_an_error():
    config = dataclasses.replace(SPLASH, history_items=31)
    short = jax.tree.map(lambda leaf: leaf[:, :31], (batch().history_codes, batch().history_mask))

    def encode():
        fresh = onerec.init_params(config, key=jax.random.key(0))
        return onerec.encode_tokens(config, fresh, *short)

    with pytest.raises(ConfigError, match=r"splash kernel takes lengths that 128.*124 keys; pad"):
        jax.eval_shape(encode)
