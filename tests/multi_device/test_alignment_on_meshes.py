"""The preference step on 8 fake devices does what it does on one: loss, metrics, gradients.

As for the pre-training step, the experts' capacity is set so high that no token is dropped.
"""

import functools

import jax
import numpy as np
import pytest

from core_jax.data.pipeline import to_device
from core_jax.metrics import compute
from core_jax.sharding import match_rules
from rec_jax.align.methods import MethodConfig
from rec_jax.align.objective import align_loss
from rec_jax.model import onerec
from rec_jax.model.shardings import RULES
from tests.multi_device.test_onerec_on_meshes import ALL_MESHES, CONFIG, MESHES, ONE, _mesh
from tests.rec.align_cases import batch

SHAPES = {"a group per sample": (16, 1), "a group per two samples": (8, 2)}


@functools.cache
def _loss_and_gradient(mesh_name: str, shape: str):
    mesh = _mesh(MESHES.get(mesh_name, ONE))
    init = functools.partial(onerec.init_params, CONFIG)
    shardings = match_rules(RULES, jax.eval_shape(lambda: init(key=jax.random.key(0))), mesh)
    params = jax.device_put(jax.jit(lambda: init(key=jax.random.key(0)))(), shardings)

    def mean_loss(params, batch):
        loss, metrics = align_loss(CONFIG, MethodConfig(), 1.0, mesh, params, batch)
        return loss.total / loss.count, metrics

    step = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
    preferences = batch(*SHAPES[shape], ragged=True, empty=(3,), config=CONFIG)
    (loss, metrics), grads = jax.device_get(
        step(params, to_device(jax.device_get(preferences), mesh))
    )
    return loss, compute(metrics), grads


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ALL_MESHES)
def test_loss_metrics_and_gradients_are_those_of_one_device(name, shape):
    loss, metrics, grads = _loss_and_gradient(name, shape)
    one_loss, one_metrics, one_grads = _loss_and_gradient("one", shape)
    assert loss == pytest.approx(one_loss, rel=1e-5)
    assert metrics["tokens_dropped"] == 0.0
    for metric, value in one_metrics.items():
        np.testing.assert_allclose(metrics[metric], value, rtol=1e-4, atol=1e-6, err_msg=metric)
    for (path, grad), one in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(one_grads), strict=True
    ):
        scale = np.abs(one).max() + 1e-8
        np.testing.assert_allclose(grad / scale, one / scale, atol=1e-5, err_msg=str(path))
