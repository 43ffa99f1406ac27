"""The preference step in the project's train step: descent, one compilation, microbatches."""

import functools

import jax
import numpy as np
import optax
import pytest

from core_jax.data.pipeline import to_device
from core_jax.mesh import MeshConfig, make_mesh, replicated
from core_jax.metrics import compute
from core_jax.train_state import init_state
from core_jax.train_step import make_train_step
from rec_jax.align.methods import Method, MethodConfig, uses_advantages, uses_negatives
from rec_jax.align.objective import align_loss
from rec_jax.model import onerec
from rec_jax.model.shardings import RULES
from tests.rec.align_cases import CONFIG, batch, params

QUICK = (Method.DPO, Method.ECPO)


def train(method, preferences, *, steps, rate, num_microbatches=1, weight=1.0):
    """Metrics of every step and the final parameters, from those of the cases."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    optimizer = optax.sgd(rate)
    state, shardings = init_state(
        functools.partial(onerec.init_params, CONFIG),
        optimizer,
        mesh=mesh,
        rules=RULES,
        key=jax.random.key(3),
    )
    traces = []

    def objective(params, batch, *, key):
        traces.append(key)
        return align_loss(CONFIG, MethodConfig(method=method), weight, mesh, params, batch, key=key)

    train_step = make_train_step(
        objective,
        optimizer,
        mesh=mesh,
        state_shardings=shardings,
        num_microbatches=num_microbatches,
    )
    found = []
    data, key = (
        to_device(jax.device_get(preferences), mesh),
        jax.device_put(jax.random.key(1), replicated(mesh)),
    )
    for _ in range(steps):
        state, metrics = train_step(state, data, key)
        found.append(compute(metrics))
    assert len(traces) == 1
    return found, jax.device_get(state.params)


def cases():
    return [
        pytest.param(method, marks=() if method in QUICK else pytest.mark.long) for method in Method
    ]


@pytest.mark.parametrize("method", cases())
def test_a_few_steps_lower_the_loss(method):
    """Of a fixed batch, from policy = reference.

    ECPO's and GBPO's own values are flat where the old probability moves with the new: what they do
    is read from the margin.
    """
    pairwise = not (uses_advantages(method) or uses_negatives(method))
    preferences = batch(4, 2, 2 if pairwise else 5, reference=params(3))
    found, _ = train(method, preferences, steps=5, rate=0.02, weight=3.0)
    assert [metrics["skipped"] for metrics in found] == [0.0] * 5
    assert found[-1]["margin"] > found[0]["margin"] + 1e-3
    assert found[-1]["loss"] < found[0]["loss"]
    if not uses_advantages(method):
        assert found[-1]["preference_loss"] < found[0]["preference_loss"]


@pytest.mark.long
def test_microbatches_change_nothing():
    """Ragged sessions, an empty place, an uneven number of groups in each part: the same step."""
    preferences = batch(4, 2, ragged=True, empty=(2,))
    whole, params_whole = train(Method.DPO, preferences, steps=1, rate=1.0)
    parts, params_parts = train(Method.DPO, preferences, steps=1, rate=1.0, num_microbatches=2)
    for name in whole[0]:
        np.testing.assert_allclose(parts[0][name], whole[0][name], rtol=1e-5, err_msg=name)
    for one, other in zip(
        jax.tree.leaves(params_whole), jax.tree.leaves(params_parts), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5 * (np.abs(one).max() + 1e-6))
