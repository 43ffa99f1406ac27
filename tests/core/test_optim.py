"""Schedules as formulas; AdamW against its equations; which parameters decay, clip or balance."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from core_jax.errors import ConfigError
from core_jax.optim import (
    OptimConfig,
    Schedule,
    decay_mask,
    loss_gradient_norm,
    make_optimizer,
    make_schedule,
)

PEAK, WARMUP, STEPS, FINAL = 0.3, 5, 19, 0.1


def _schedule(kind):
    return make_schedule(
        OptimConfig(
            learning_rate=PEAK, schedule=kind, warmup_steps=WARMUP, final_fraction=FINAL
        ),
        STEPS,
    )  # fmt: skip


@pytest.mark.parametrize("kind", list(Schedule))
def test_warmup_rises_linearly_to_the_peak(kind):
    schedule = _schedule(kind)
    for count in range(WARMUP + 1):
        assert float(schedule(count)) == pytest.approx(PEAK * (count + 1) / (WARMUP + 1), rel=1e-6)


def test_after_the_warmup():
    for count in range(WARMUP, STEPS + 3):
        t = min((count - WARMUP) / (STEPS - WARMUP), 1.0)
        linear = FINAL + (1 - FINAL) * (1 - t)
        cosine = FINAL + (1 - FINAL) * (1 + math.cos(math.pi * t)) / 2
        assert float(_schedule(Schedule.CONSTANT)(count)) == pytest.approx(PEAK, rel=1e-6)
        assert float(_schedule(Schedule.LINEAR)(count)) == pytest.approx(PEAK * linear, rel=1e-5)
        assert float(_schedule(Schedule.COSINE)(count)) == pytest.approx(PEAK * cosine, rel=1e-5)


def test_without_warmup_the_first_update_has_the_peak():
    schedule = make_schedule(OptimConfig(learning_rate=PEAK, schedule=Schedule.COSINE), STEPS)
    assert float(jax.jit(schedule)(jnp.int32(0))) == pytest.approx(PEAK, rel=1e-6)


def _params():
    return {
        "layer": {"kernel": jnp.asarray([[1.0, -2.0], [3.0, 5.0]]), "scale": jnp.asarray([7.0])},
        "router": {"bias": jnp.asarray([0.5, 0.25, -1.0])},
    }


def _updates(config, gradients):
    """Parameters after one update per gradient tree."""
    optimizer = make_optimizer(config, num_steps=11)
    params = _params()
    state = optimizer.init(params)
    for grads in gradients:
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_adamw_follows_its_equations():
    """Bias-corrected moments of the clipped gradient, then decoupled decay, times the rate."""
    config = OptimConfig(
        learning_rate=0.1, schedule=Schedule.LINEAR, weight_decay=0.3, no_decay=("scale$",),
        beta1=0.7, beta2=0.9, epsilon=0.05, clip_norm=2.0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    gradients = [
        jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), _params())
        for _ in range(3)
    ]
    for name, decay in (("kernel", 0.3), ("scale", 0.0)):
        value = np.asarray(_params()["layer"][name], np.float64)
        mean, square = np.zeros_like(value), np.zeros_like(value)
        for step, grads in enumerate(gradients, start=1):
            norm = math.sqrt(sum(float(jnp.sum(g**2)) for g in grads["layer"].values()))
            grad = np.asarray(grads["layer"][name], np.float64) * min(1.0, 2.0 / norm)
            mean = 0.7 * mean + 0.3 * grad
            square = 0.9 * square + 0.1 * grad**2
            root = np.sqrt(square / (1 - 0.9**step))
            direction = mean / (1 - 0.7**step) / (root + 0.05) + decay * value
            value = value - 0.1 * (1 - (step - 1) / 11) * direction
        result = _updates(config, gradients)["layer"][name]
        np.testing.assert_allclose(result, value, rtol=1e-5)


def test_decay_shrinks_all_but_the_masked():
    """With a zero gradient, AdamW multiplies a decayed weight by 1 - rate x decay."""
    config = OptimConfig(learning_rate=0.5, weight_decay=0.25, no_decay=("scale$", "nothing$"))
    assert decay_mask(config, _params())["layer"] == {"kernel": True, "scale": False}
    after = _updates(config, [jax.tree.map(jnp.zeros_like, _params())])
    before = _params()
    np.testing.assert_allclose(after["layer"]["kernel"], before["layer"]["kernel"] * (1 - 0.125))
    np.testing.assert_array_equal(after["layer"]["scale"], before["layer"]["scale"])
    np.testing.assert_array_equal(after["router"]["bias"], before["router"]["bias"])


def test_balance_bias_moves_by_the_sign_of_its_gradient_alone():
    """Neither learning rate, decay nor clipping reach it, nor does it reach the others' clip."""
    grads = jax.tree.map(jnp.ones_like, _params())
    grads["router"]["bias"] = jnp.asarray([1e6, 0.0, -1e-6])
    config = OptimConfig(
        learning_rate=0.5, weight_decay=0.25, clip_norm=1.0, epsilon=1.0, bias_update_rate=0.01
    )
    after = _updates(config, [grads, grads])
    expected = _params()["router"]["bias"] - 2 * 0.01 * jnp.asarray([1.0, 0.0, -1.0])
    np.testing.assert_allclose(after["router"]["bias"], expected, rtol=1e-6)
    small = grads | {"router": {"bias": jnp.zeros(3)}}
    same = _updates(config, [small, small])
    np.testing.assert_array_equal(after["layer"]["kernel"], same["layer"]["kernel"])
    assert float(loss_gradient_norm(grads)) == pytest.approx(math.sqrt(5.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": 0.0}, "optim.learning_rate is 0.0; it must be positive and finite"),
        ({"learning_rate": math.inf}, "optim.learning_rate is inf; it must be positive"),
        ({"learning_rate": math.nan}, "optim.learning_rate is nan; it must be positive"),
        ({"epsilon": -1.0}, "optim.epsilon is -1.0; it must be positive"),
        ({"clip_norm": 0.0}, "optim.clip_norm is 0.0; it must be positive"),
        ({"weight_decay": -0.1}, "optim.weight_decay is -0.1; it must not be negative"),
        ({"bias_update_rate": -0.1}, "optim.bias_update_rate is -0.1; it must not be negative"),
        ({"warmup_steps": -1}, "optim.warmup_steps is -1; it must not be negative"),
        ({"warmup_fraction": 1.0}, r"optim.warmup_fraction is 1.0; it must lie in \[0, 1\)"),
        (
            {"warmup_fraction": 0.1, "warmup_steps": 5},
            "optim.warmup_steps is 5 and optim.warmup_fraction 0.1; both say .* one of them to 0",
        ),
        ({"beta1": 1.0}, r"optim.beta1 is 1.0; it must lie in \[0, 1\)"),
        ({"beta2": -0.5}, r"optim.beta2 is -0.5; it must lie in \[0, 1\)"),
        ({"final_fraction": 1.5}, r"optim.final_fraction is 1.5; it must lie in \[0, 1\]"),
        ({"no_decay": ("norm(",)}, r"optim.no_decay has 'norm\(', no regular expression .*correct"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        OptimConfig(**({"learning_rate": 0.1} | fields))


def test_a_warmup_as_long_as_the_run():
    config = OptimConfig(learning_rate=0.1, warmup_steps=7)
    message = "optim.warmup_steps is 7, which is 7 updates, but training has 7 steps; .*set it low"
    with pytest.raises(ConfigError, match=message):
        make_optimizer(config, 7)


def test_a_share_of_the_updates_warms_up_as_their_number_does():
    share = OptimConfig(learning_rate=PEAK, warmup_fraction=0.1, schedule=Schedule.LINEAR)
    number = OptimConfig(learning_rate=PEAK, warmup_steps=3, schedule=Schedule.LINEAR)
    counts = np.arange(25)
    rates = [make_schedule(config, 25)(counts) for config in (share, number)]
    np.testing.assert_array_equal(*rates)
    assert rates[0][0] == pytest.approx(PEAK / 4)


def test_a_share_that_leaves_no_update():
    message = "optim.warmup_fraction is 0.9, which is 2 updates, but training has 2 steps"
    with pytest.raises(ConfigError, match=message):
        make_schedule(OptimConfig(learning_rate=0.1, warmup_fraction=0.9), 2)
