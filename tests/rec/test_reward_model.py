"""The reward model: padding says nothing, histories are shared, absent labels have no gradient."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.sharding import match_rules
from rec_jax.reward import model
from rec_jax.reward.batch import make_batch
from rec_jax.reward.config import RewardArchitecture, RewardModelConfig, TargetConfig, TargetKind
from rec_jax.reward.objective import reward_loss
from rec_jax.reward.shardings import RULES
from tests.rec.reward_cases import CODES, NUM_ITEMS, network, random_batch

BOTH = pytest.mark.parametrize("architecture", RewardArchitecture)
HEADS = tuple(
    TargetConfig(name=f"t{place}", kind=TargetKind.ANY, column="like", p_weight=weight)
    for place, weight in enumerate((2.0, 0.0, 5.0))
)

apply = jax.jit(model.apply, static_argnums=0, static_argnames="mesh")


def assert_close(first, second) -> None:
    np.testing.assert_allclose(first, second, rtol=2e-5, atol=2e-5)


@BOTH
def test_shapes_and_dtypes(architecture):
    config, params = network(architecture)
    logits = apply(config, params, random_batch())
    assert logits.shape == (3, 2, 3)
    assert logits.dtype == jnp.float32
    assert np.unique(np.asarray(logits)).size == 18
    with_p, params = network(architecture, p_score=True)
    assert apply(with_p, params, random_batch()).shape == (3, 2, 4)


@BOTH
def test_what_lies_under_padding_does_not_matter(architecture):
    config, params = network(architecture)
    batch = random_batch()
    other = dataclasses.replace(
        batch,
        **{
            f"{part}_{kind}": np.where(
                mask if kind == "items" else mask[..., None],
                getattr(batch, f"{part}_{kind}"),
                3,
            )
            for part in ("history", "session")
            for kind in ("items", "codes")
            for mask in [getattr(batch, f"{part}_mask")]
        },
    )
    assert not np.array_equal(batch.session_items, other.session_items)
    assert_close(apply(config, params, batch), apply(config, params, other))


@BOTH
def test_a_session_padded_further_is_worth_the_same(architecture):
    config, params = network(architecture)
    short = np.array([[[4, 9, 2]], [[8, 8, 1]]], np.int32)
    history = np.array([[-1, -1, 3, 5, 7, 11, 13]] * 2, np.int32)
    long = np.pad(short, ((0, 0), (0, 0), (0, 2)), constant_values=-1)
    first, second = (
        apply(config, params, make_batch(CODES, history, session)) for session in (short, long)
    )
    assert_close(first, second)


@BOTH
def test_a_shorter_history_is_the_padded_one(architecture):
    config, params = network(architecture)
    session = np.array([[[4, 9, 2, 6, 1]]], np.int32)
    short = np.array([[3, 5, 11]], np.int32)
    long = np.pad(short, ((0, 0), (4, 0)), constant_values=-1)
    first, second = (
        apply(config, params, make_batch(CODES, history, session)) for history in (short, long)
    )
    assert_close(first, second)


@BOTH
def test_order_of_history_and_session_matters(architecture):
    config, params = network(architecture)
    history, session = (
        np.arange(7)[None].astype(np.int32),
        np.arange(5)[None, None].astype(np.int32),
    )
    plain = apply(config, params, make_batch(CODES, history, session))
    for other in (
        make_batch(CODES, history[:, ::-1], session),
        make_batch(CODES, history, session[:, :, ::-1]),
    ):
        assert np.abs(apply(config, params, other) - plain).max() > 1e-3


@BOTH
def test_sessions_share_the_history_of_their_user(architecture):
    """K sessions at once are worth what each is alone."""
    config, params = network(architecture)
    batch = random_batch(sessions=5)
    together = apply(config, params, batch)
    for place in range(5):
        fields = {
            f"session_{kind}": getattr(batch, f"session_{kind}")[:, place : place + 1]
            for kind in ("items", "codes", "mask")
        }
        alone = apply(config, params, dataclasses.replace(batch, **fields))
        assert_close(together[:, place], alone[:, 0])


@BOTH
def test_without_a_history_its_parameters_say_nothing(architecture):
    """A user without history adds zero: positions of the history have no gradient."""
    config, params = network(architecture)
    empty = make_batch(CODES, np.full((1, 7), -1, np.int32), np.array([[[1, 2, 3, 4, 5]]]))
    grads = jax.grad(lambda params: apply(config, params, empty).sum())(params)["body"]
    name = "recency" if architecture is RewardArchitecture.POOLED else "history_positions"
    assert np.abs(grads[name]).max() == 0
    assert np.isfinite(apply(config, params, empty)).all()


@BOTH
@pytest.mark.parametrize("p_score", [False, True])
def test_gradients_reach_every_parameter(architecture, p_score):
    config, params = network(architecture, p_score=p_score)
    batch = dataclasses.replace(random_batch(batch=17), label_mask=np.ones((17, 3), bool))
    grads = jax.jit(
        jax.grad(lambda params: reward_loss(config, HEADS, None, params, batch)[0].total)
    )(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(leaf).max() > 0, path


@BOTH
def test_loss_is_the_cross_entropy_of_the_labels_that_are_there(architecture):
    config, params = network(architecture, p_score=True)
    batch = random_batch(batch=5, sessions=1)
    logits = np.asarray(apply(config, params, batch))[:, 0].astype(np.float64)
    weights, total, p_total, p_count = (2.0, 0.0, 5.0), 0.0, 0.0, 0.0
    for row, head in np.argwhere(batch.label_mask):
        label = float(batch.labels[row, head])
        for place, weight in ((head, None), (3, weights[head])):
            p = 1 / (1 + math.exp(-logits[row, place]))
            nats = -(label * math.log(p) + (1 - label) * math.log(1 - p))
            if weight is None:
                total += nats
            else:
                p_total, p_count = p_total + weight * nats, p_count + weight
    loss, metrics = reward_loss(config, HEADS, None, params, batch)
    assert float(loss.total) == pytest.approx(total + p_total, rel=1e-5)
    assert float(loss.count) == batch.label_mask.any(axis=1).sum()
    assert float(metrics["loss_p_score"].total) == pytest.approx(p_total, rel=1e-5)
    assert float(metrics["loss_p_score"].count) == pytest.approx(p_count)
    heads = sum(float(metrics[f"loss_t{place}"].total) for place in range(3))
    assert heads == pytest.approx(total, rel=1e-5)


def test_an_absent_label_has_no_gradient():
    config, params = network(RewardArchitecture.TARGET_ATTENTION)
    batch = random_batch(batch=5)
    assert not batch.label_mask.all()
    other = dataclasses.replace(batch, labels=np.where(batch.label_mask, batch.labels, 0.77))
    gradient = jax.jit(
        jax.grad(lambda params, held: reward_loss(config, HEADS, None, params, held)[0].total)
    )
    first, second = gradient(params, batch), gradient(params, other)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_item_numbers_can_be_left_out():
    config, params = network(RewardArchitecture.POOLED, use_item_ids=False)
    assert set(params["embeddings"]) == {"codes"}
    batch = random_batch()
    other = dataclasses.replace(batch, session_items=(batch.session_items + 1) % NUM_ITEMS)
    assert_close(apply(config, params, batch), apply(config, params, other))


def test_dropout_draws_by_key_alone():
    config, params = network(RewardArchitecture.TARGET_ATTENTION, dropout=0.5)
    batch = random_batch()
    first, again, other = (
        apply(config, params, batch, key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    still = dataclasses.replace(config, dropout=0.0)
    assert_close(apply(config, params, batch), apply(still, params, batch))


@pytest.mark.long
@BOTH
def test_every_parameter_has_a_sharding_and_the_mesh_changes_nothing(architecture):
    config, params = network(architecture, p_score=True, d_model=12)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = match_rules(RULES, params, mesh)
    batch = random_batch(batch=8)
    sharded = jax.jit(lambda params: apply(config, params, batch, mesh=mesh))(
        jax.device_put(params, shardings)
    )
    assert_close(sharded, apply(config, params, batch))


def test_what_the_stage_fills_in_must_be_known():
    with pytest.raises(ConfigError, match="level_sizes is not known"):
        model.init_params(RewardModelConfig(), key=jax.random.key(0))
    with pytest.raises(ConfigError, match=r"d_model is 0"):
        RewardModelConfig(d_model=0)
    with pytest.raises(ConfigError, match=r"dropout is 1.0"):
        RewardModelConfig(dropout=1.0)


def test_item_vectors_start_the_items_own():
    config, _ = network(RewardArchitecture.POOLED)
    vectors = np.arange(NUM_ITEMS * 13, dtype=np.float32).reshape(NUM_ITEMS, 13)
    params = model.init_params(config, key=jax.random.key(0), item_vectors=vectors)
    np.testing.assert_array_equal(params["embeddings"]["items"], vectors)
