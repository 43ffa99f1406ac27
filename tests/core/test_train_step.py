"""The train step: the same on any mesh and in any number of microbatches, and safe from NaN.

The model is a small mixture of experts with a dense gate and ragged target masks.
Dimension key: B batch, T targets, D features, E experts, F hidden.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from core_jax.errors import ConfigError
from core_jax.mesh import MeshConfig, batch_sharding, make_mesh, replicated
from core_jax.metrics import Ratio, compute
from core_jax.optim import OptimConfig, Schedule, make_optimizer, make_schedule
from core_jax.train_state import abstract_state, init_state
from core_jax.train_step import _split, make_eval_step, make_train_step

B, T, D, E, F = 24, 5, 12, 4, 20
NOISE = 0.1
RATE = 0.05

RULES = (
    (r"router/(kernel|bias)$", P()),
    (r"experts/up$", P("expert", "fsdp", "tensor")),
    (r"experts/down$", P("expert", "tensor", "fsdp")),
    (r"out/kernel$", P("fsdp")),
)

MIXES = {
    "data8": MeshConfig(data=8),
    "data2-fsdp4": MeshConfig(data=2, fsdp=4),
    "data2-fsdp2-tensor2": MeshConfig(data=2, fsdp=2, tensor=2),
    "fsdp2-expert2-tensor2": MeshConfig(data=1, fsdp=2, expert=2, tensor=2),
    "data2-expert4": MeshConfig(data=2, expert=4),
}


def init_params(*, key):
    values_RD = jax.random.uniform(key, (E + 2 * E * F + T, D), minval=-1) * (3 / D) ** 0.5
    router, up, down, out = jnp.split(values_RD, (E, E + E * F, E + 2 * E * F))
    return {
        "router": {"kernel": router.T, "bias": jnp.zeros(E)},
        "experts": {"up": up.reshape(E, D, F), "down": down.reshape(E, F, D)},
        "out": {"kernel": out.T},
    }


def objective(params, batch, *, key):
    """Masked squared error per target; the router's bias gets the load as its only gradient."""
    x_BD = batch["x"]
    if key is not None:
        x_BD = x_BD + NOISE * jax.random.uniform(key, x_BD.shape)
    gates_BE = jax.nn.softmax(x_BD @ params["router"]["kernel"])
    hidden_BEF = jnp.tanh(jnp.einsum("BD,EDF->BEF", x_BD, params["experts"]["up"]))
    y_BED = jnp.einsum("BEF,EFD->BED", hidden_BEF, params["experts"]["down"])
    y_BT = jnp.einsum("BE,BED->BD", gates_BE, y_BED) @ params["out"]["kernel"]
    error_BT = jnp.where(batch["mask"], jnp.square(y_BT - batch["y"]), 0.0)
    load_E = jax.lax.stop_gradient(jnp.sum(gates_BE, axis=0) - x_BD.shape[0] / E)
    bias_E = params["router"]["bias"]
    balance = jnp.sum((bias_E - jax.lax.stop_gradient(bias_E)) * load_E)
    count = jnp.sum(batch["mask"], dtype=jnp.float32)
    metrics = {"gates": Ratio(total=jnp.sum(gates_BE, axis=0), count=jnp.float32(x_BD.shape[0]))}
    return Ratio(total=jnp.sum(error_BT) + balance, count=count), metrics


def quiet_objective(params, batch, *, key):
    """The objective without noise: what microbatches are compared on."""
    return objective(params, batch, key=None)


def make_batch(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(B, D)).astype(np.float32),
        "y": rng.normal(size=(B, T)).astype(np.float32),
        "mask": np.arange(T) < rng.integers(0, T + 1, size=B)[:, None],
    }


def sgd():
    """Gradient descent that keeps the latest gradient in its state, to be looked at."""
    return optax.chain(optax.trace(decay=0.0), optax.scale(-RATE))


def adam():
    config = OptimConfig(
        learning_rate=0.01, clip_norm=1.0, weight_decay=0.1, no_decay=("out/kernel$",)
    )
    return make_optimizer(config, num_steps=11)


def one_device():
    return make_mesh(MeshConfig(), devices=jax.devices()[:1])


@functools.cache
def initial_values(make):
    """The fresh state as host arrays, so that tests on other meshes need not compile it."""
    return jax.device_get(
        init_state(init_params, make(), mesh=one_device(), rules=RULES, key=jax.random.key(0))[0]
    )


def start(mesh, make, function=objective, **options):
    """A fresh state, its step function, and a key on the mesh."""
    abstract = abstract_state(init_params, make(), mesh=mesh, rules=RULES)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state = jax.device_put(initial_values(make), shardings)
    step = make_train_step(function, make(), mesh=mesh, state_shardings=shardings, **options)
    return state, step, jax.device_put(jax.random.key(1), replicated(mesh))


def run(mesh, make, num_steps, function=objective):
    """Losses, gradient after the first step (of `sgd`) and final parameters, on the host."""
    state, step, key = start(mesh, make, function)
    losses, first_trace = [], None
    for seed in range(num_steps):
        state, metrics = step(state, jax.device_put(make_batch(seed), batch_sharding(mesh)), key)
        losses.append(compute(metrics)["loss"])
        if first_trace is None:
            first_trace = jax.device_get(getattr(state.opt_state[0], "trace", None))
    return np.asarray(losses), first_trace, jax.device_get(state.params)


def assert_close(actual, expected, tolerance):
    """Leaf by leaf, relative to the leaf's largest value."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = np.abs(right).max()
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance * scale)


@pytest.fixture(scope="module")
def sgd_on_one_device():
    return run(one_device(), sgd, 5)


@pytest.mark.parametrize("mix", MIXES)
def test_sgd_on_8_devices_is_sgd_on_one(mix, sgd_on_one_device):
    """Loss and gradient at equal parameters, and parameters after 5 steps; noise included."""
    losses, gradient, params = run(make_mesh(MIXES[mix]), sgd, 5)
    expected_losses, expected_gradient, expected_params = sgd_on_one_device
    assert losses[0] == pytest.approx(expected_losses[0], rel=1e-5)
    assert_close(gradient, expected_gradient, 1e-5)
    assert_close(losses, expected_losses, 1e-5)
    assert_close(params, expected_params, 1e-5)


def test_the_adam_curve_on_8_devices_is_that_of_one():
    expected, _, _ = run(one_device(), adam, 11, quiet_objective)
    losses, _, _ = run(make_mesh(MIXES["fsdp2-expert2-tensor2"]), adam, 11, quiet_objective)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    assert expected[-1] < expected[0]


@pytest.mark.parametrize(
    ("mesh_config", "num_microbatches"),
    [(None, 24), (MIXES["data2-fsdp2-tensor2"], 3), (MIXES["data2-expert4"], 3)],
)
def test_microbatches_give_the_gradient_of_the_whole_batch(mesh_config, num_microbatches):
    """The masks are ragged, so averaging the parts' means would be far off (checked too)."""
    mesh = one_device() if mesh_config is None else make_mesh(mesh_config)
    batch = make_batch()
    state, step, key = start(mesh, sgd, quiet_objective, num_microbatches=num_microbatches)
    params = jax.device_get(state.params)

    @jax.jit
    @jax.value_and_grad
    def mean_loss(params, where_B):
        rows = batch | {"mask": batch["mask"] & where_B[:, None]}
        loss, _ = quiet_objective(params, rows, key=None)
        return loss.total / loss.count

    rows_B = np.arange(B)
    loss, gradient = mean_loss(params, rows_B >= 0)
    state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)), key)
    values = compute(metrics)
    assert values["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert_close(jax.device_get(state.opt_state[0].trace), jax.device_get(gradient), 1e-5)
    loss_leaves = [
        leaf for name in gradient if name != "router" for leaf in gradient[name].values()
    ]
    norm = optax.tree.norm([*jax.tree.leaves(loss_leaves), gradient["router"]["kernel"]])
    assert values["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert values["gates"].sum() == pytest.approx(1.0, rel=1e-5)
    if num_microbatches == 3:
        parts = [float(mean_loss(params, rows_B % 3 == part)[0]) for part in range(3)]
        assert abs(np.mean(parts) / float(loss) - 1) > 1e-3


def test_splitting_into_microbatches_moves_no_row_between_devices():
    mesh = make_mesh(MIXES["data2-fsdp4"])
    batch = jax.device_put(make_batch(), batch_sharding(mesh))
    split = jax.jit(lambda batch: _split(batch, 3, mesh))
    compiled = split.lower(batch).compile().as_text()
    assert not any(word in compiled for word in ("all-", "collective", "scatter"))
    x_GBD = np.asarray(split(batch)["x"])
    np.testing.assert_array_equal(x_GBD[1], make_batch()["x"][1::3])


def test_sharded_initialisation_gives_the_values_of_one_device():
    mesh = make_mesh(MIXES["fsdp2-expert2-tensor2"])
    key = jax.random.key(3)
    state, shardings = init_state(init_params, adam(), mesh=mesh, rules=RULES, key=key)
    expected = init_params(key=key)
    assert_close(jax.device_get(state.params), jax.device_get(expected), 1e-6)
    up = state.params["experts"]["up"]
    assert up.sharding.spec == P("expert", "fsdp", "tensor")
    assert {shard.data.shape for shard in up.addressable_shards} == {(E // 2, D // 2, F // 2)}
    abstract = abstract_state(init_params, adam(), mesh=mesh, rules=RULES)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    for leaf, told, wanted in zip(*map(jax.tree.leaves, (state, abstract, shardings)), strict=True):
        assert (leaf.shape, leaf.dtype) == (told.shape, told.dtype)
        assert leaf.sharding == told.sharding == wanted


def test_a_parameter_without_a_rule_is_named_before_anything_runs():
    with pytest.raises(ConfigError, match=r"'out/kernel' of shape \(12, 5\) matches none of the 3"):
        init_state(init_params, sgd(), mesh=one_device(), rules=RULES[:3], key=jax.random.key(0))


def test_three_steps_compile_once_transfer_nothing_and_give_up_the_state():
    mesh = make_mesh(MIXES["data2-fsdp2-tensor2"])
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(quiet_objective, n=1)
    _, step, key = start(mesh, adam, counted)
    first, _ = init_state(init_params, adam(), mesh=mesh, rules=RULES, key=key)
    state = first
    batches = [jax.device_put(make_batch(seed), batch_sharding(mesh)) for seed in range(3)]
    with jax.transfer_guard("disallow"):
        for batch in batches:
            state, metrics = step(state, batch, key)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert int(state.step) == 3 and np.isfinite(compute(metrics)["loss"])


def poisoned(kind):
    """A batch that cannot be learnt from; "" leaves it good."""
    batch = make_batch(1)
    if kind == "infinite input":
        batch["x"][7, 3] = np.inf
    elif kind == "no target":
        batch["mask"][:] = False
    elif kind == "zero distance":
        batch["x"][0, 0] = 0.0
    return batch


def with_distance(params, batch, *, key):
    """Adds a distance that is zero when the first input is: value 0, but gradient infinite."""
    loss, metrics = objective(params, batch, key=None)
    distance = jnp.sum(jnp.square(batch["x"][0, 0] * params["out"]["kernel"]))
    return Ratio(total=loss.total + jnp.sqrt(distance), count=loss.count), metrics


@pytest.mark.parametrize("num_microbatches", [1, 3])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(num_microbatches):
    mesh = one_device()
    state, step, key = start(mesh, adam, with_distance, num_microbatches=num_microbatches)

    def take(state, kind):
        return step(state, jax.device_put(poisoned(kind), batch_sharding(mesh)), key)

    state, metrics = take(state, "")
    assert compute(metrics)["skipped"] == 0.0
    before = jax.device_get(state)
    for times, kind in enumerate(("infinite input", "no target", "zero distance"), start=1):
        state, metrics = take(state, kind)
        assert (int(state.skipped_in_a_row), int(state.skipped_total)) == (times, times), kind
        values = compute(metrics)
        assert values["skipped"] == 1.0
        assert np.isnan(values["loss"]) and metrics["loss"].count == metrics["loss"].total == 0.0
        chex.assert_trees_all_equal(jax.device_get(state.params), before.params)
        chex.assert_trees_all_equal(jax.device_get(state.opt_state), before.opt_state)
    state, metrics = take(state, "")
    assert (int(state.step), int(state.skipped_in_a_row), int(state.skipped_total)) == (5, 0, 3)
    assert np.isfinite(compute(metrics)["loss"])
    assert np.any(jax.device_get(state.params["out"]["kernel"]) != before.params["out"]["kernel"])


def test_the_key_is_folded_with_the_step_and_the_learning_rate_counts_updates():
    """A skipped step takes a new key, but not the next learning rate."""
    mesh = one_device()

    def drawing(params, batch, *, key):
        loss, _ = quiet_objective(params, batch, key=None)
        return loss, {"draw": Ratio(total=jax.random.uniform(key), count=jnp.float32(1))}

    config = OptimConfig(learning_rate=0.1, schedule=Schedule.LINEAR, warmup_steps=2)
    schedule = make_schedule(config, 7)
    state, step, key = start(
        mesh, functools.partial(make_optimizer, config, 7), drawing, schedule=schedule
    )
    rates, draws = [], []
    for kind in ("", "", "infinite input", "", ""):
        state, metrics = step(state, jax.device_put(poisoned(kind), batch_sharding(mesh)), key)
        values = compute(metrics)
        rates.append(values["learning_rate"])
        draws.append(values["draw"])
    expected = jax.jit(jax.vmap(lambda step: jax.random.uniform(jax.random.fold_in(key, step))))
    good = [0, 1, 3, 4]
    np.testing.assert_allclose(
        np.take(draws, good), expected(np.arange(5))[np.asarray(good)], rtol=1e-6
    )
    np.testing.assert_allclose(np.take(rates, good), jax.jit(schedule)(np.arange(4)))
    assert int(state.opt_state.inner_states["adam"].inner_state[-1].count) == 4


def test_evaluation_is_the_objective_without_a_key():
    mesh = make_mesh(MIXES["fsdp2-expert2-tensor2"])
    state, _, _ = start(mesh, sgd)
    evaluate = make_eval_step(objective, mesh=mesh)
    values = compute(evaluate(state.params, jax.device_put(make_batch(), batch_sharding(mesh))))
    loss, metrics = objective(jax.device_get(state.params), make_batch(), key=None)
    assert values.keys() == {"loss", "gates"}
    assert values["loss"] == pytest.approx(float(loss.total / loss.count), rel=1e-5)
    np.testing.assert_allclose(values["gates"], compute(metrics)["gates"], rtol=1e-5)


def test_a_batch_that_does_not_split_is_refused_and_so_is_a_metric_of_the_steps_own():
    mesh = make_mesh(MIXES["data2-fsdp4"])
    batch = jax.device_put(make_batch(), batch_sharding(mesh))
    state, step, key = start(mesh, sgd, num_microbatches=5)
    with pytest.raises(ConfigError, match="batch_size 24 is not a positive multiple of 40, which"):
        step(state, batch, key)

    def clashing(params, batch, *, key):
        loss, _ = quiet_objective(params, batch, key=None)
        return loss, {"grad_norm": loss}

    _, step, _ = start(mesh, sgd, clashing)
    with pytest.raises(AssertionError, match="the objective names a metric"):
        step(state, batch, key)
