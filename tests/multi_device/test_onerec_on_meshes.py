"""OneRec on 8 fake devices does what it does on one: loss, gradients, SGD and Adam steps.

The experts' capacity is set so high that no token is dropped: only then is the sharded model the
same function. Sizes split over every mesh used here, but for those of the catalogue, which are
odd, their sums too; they are otherwise distinct.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from core_jax.data.pipeline import to_device
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.metrics import compute
from core_jax.nn.linear import ComputeDtype
from core_jax.optim import OptimConfig, make_optimizer
from core_jax.sharding import match_rules
from core_jax.train_state import abstract_state, init_state
from core_jax.train_step import make_train_step
from rec_jax.batch import SessionBatch
from rec_jax.model import onerec
from rec_jax.model.config import OneRecConfig
from rec_jax.model.modules import gathered_layer
from rec_jax.model.shardings import RULES
from rec_jax.moe.router import Balance
from rec_jax.objectives import next_token_loss

CONFIG = OneRecConfig(
    level_sizes=(19, 11, 7),
    history_items=3,
    session_items=2,
    d_model=24,
    num_heads=2,
    head_dim=12,
    d_ff=40,
    num_encoder_layers=1,
    num_decoder_layers=2,
    num_experts=8,
    experts_per_token=2,
    d_expert=20,
    balance=Balance.LOSS_FREE,
    capacity_factor=8.0,
)
MESHES = {
    "data8": MeshConfig(data=8),
    "fsdp4-tensor2": MeshConfig(data=1, fsdp=4, tensor=2),
    "data2-expert4": MeshConfig(data=2, expert=4),
    "fsdp2-expert2-tensor2": MeshConfig(data=1, fsdp=2, expert=2, tensor=2),
}
ONE = MeshConfig(data=1)
QUICK = "fsdp2-expert2-tensor2"
"""The mesh that `make test` tries; the others are long tests."""
ALL_MESHES = [
    name if name == QUICK else pytest.param(name, marks=pytest.mark.long) for name in MESHES
]
REPLICATES = "full rematerialization"
"""What the compiler warns of when it copies an activation whole to every device."""


def _mesh(config: MeshConfig):
    devices = jax.devices()[:1] if config is ONE else None
    return make_mesh(config, devices)


def _batch(seed: int) -> SessionBatch:
    """16 rows, some with padding."""
    rng = np.random.default_rng(seed)

    def codes(length: int) -> np.ndarray:
        levels = [rng.integers(0, size, (16, length)) for size in CONFIG.level_sizes]
        return np.stack(levels, axis=-1).astype(np.int32)

    history_mask = np.arange(CONFIG.history_items) >= rng.integers(0, 3, (16, 1))
    target_mask = np.arange(CONFIG.session_items) < rng.integers(1, 3, (16, 1))
    return SessionBatch(
        history_codes=codes(CONFIG.history_items),
        history_mask=history_mask,
        target_codes=codes(CONFIG.session_items),
        target_mask=target_mask,
    )


@functools.cache
def _loss_and_gradient(mesh_name: str):
    mesh = _mesh(MESHES.get(mesh_name, ONE))
    init = functools.partial(onerec.init_params, CONFIG)
    shardings = match_rules(RULES, jax.eval_shape(lambda: init(key=jax.random.key(0))), mesh)
    params = jax.jit(lambda: init(key=jax.random.key(0)))()
    params = jax.device_put(params, shardings)

    def mean_loss(params, batch):
        loss, metrics = next_token_loss(CONFIG, mesh, params, batch)
        return loss.total / loss.count, metrics

    step = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
    (loss, metrics), grads = jax.device_get(step(params, to_device(_batch(0), mesh)))
    return loss, metrics, grads


@pytest.mark.parametrize("name", ALL_MESHES)
def test_loss_gradients_and_expert_load_are_those_of_one_device(name):
    loss, metrics, grads = _loss_and_gradient(name)
    one_loss, one_metrics, one_grads = _loss_and_gradient("one")
    assert loss == pytest.approx(one_loss, rel=1e-5)
    assert float(metrics["tokens_dropped"].total) == 0.0
    np.testing.assert_array_equal(metrics["expert_load"].total, one_metrics["expert_load"].total)
    for (path, grad), one in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(one_grads), strict=True
    ):
        scale = np.abs(one).max() + 1e-8
        np.testing.assert_allclose(grad / scale, one / scale, atol=1e-5, err_msg=str(path))


def _train(mesh_name: str, optimizer: optax.GradientTransformation, steps: int):
    """Losses and final parameters of a few steps through the project's train step."""
    mesh = _mesh(MESHES.get(mesh_name, ONE))
    state, shardings = init_state(
        functools.partial(onerec.init_params, CONFIG),
        optimizer,
        mesh=mesh,
        rules=RULES,
        key=jax.random.key(0),
    )
    train_step = make_train_step(
        functools.partial(next_token_loss, CONFIG, mesh),
        optimizer,
        mesh=mesh,
        state_shardings=shardings,
    )
    losses = []
    for step in range(steps):
        batch = to_device(_batch(step % 2), mesh)
        state, metrics = train_step(state, batch, jax.random.key(1))
        losses.append(compute(metrics)["loss"])
    return np.asarray(losses), jax.device_get(state.params)


@pytest.mark.parametrize("name", ["fsdp2-expert2-tensor2"])
def test_five_sgd_steps_are_those_of_one_device(name):
    losses, params = _train(name, optax.sgd(0.1), 5)
    one_losses, one_params = _train("one", optax.sgd(0.1), 5)
    np.testing.assert_allclose(losses, one_losses, rtol=1e-5)
    for left, right in zip(jax.tree.leaves(params), jax.tree.leaves(one_params), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5 * (np.abs(right).max() + 1))


@pytest.mark.long
@pytest.mark.parametrize("name", ["data2-expert4"])
def test_an_adam_curve_is_that_of_one_device(name):
    """With the real optimizer, the sign update of the router's balancing bias included."""
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-2, clip_norm=1.0), 12)
    losses, _ = _train(name, optimizer, 12)
    one_losses, _ = _train("one", optimizer, 12)
    np.testing.assert_allclose(losses, one_losses, rtol=1e-3)
    assert losses[-1] < losses[1]  # of the same batch


def test_a_config_with_other_capacity_counts_what_it_drops():
    """With room for a fraction of the balanced load only, tokens are dropped and counted."""
    config = dataclasses.replace(CONFIG, capacity_factor=0.25)
    mesh = _mesh(MESHES["data2-expert4"])
    init = functools.partial(onerec.init_params, config)
    shardings = match_rules(RULES, jax.eval_shape(lambda: init(key=jax.random.key(0))), mesh)
    params = jax.device_put(jax.jit(lambda: init(key=jax.random.key(0)))(), shardings)
    batch = to_device(_batch(0), mesh)
    metrics = jax.jit(lambda p, b: next_token_loss(config, mesh, p, b)[1])(params, batch)
    share = compute(metrics)["tokens_dropped"]
    assert 0.0 < share < 1.0
    assert bool(jnp.isfinite(metrics["loss_level_0"].total))


@pytest.fixture
def compiler_says(capfd):
    """Compiles a function and returns what was said to stderr.

    What it compiles is kept out of the compilation cache: what comes from there says nothing.
    """
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, float("inf"))

    def compile_anew(function, *arguments) -> str:
        capfd.readouterr()
        function.lower(*arguments).compile()
        return capfd.readouterr().err

    yield compile_anew
    jax.config.update(name, before)


def test_the_compiler_warns_of_a_lookup_that_is_split_along_other_axes(compiler_says):
    """What the next test listens for: a table split along D, looked up for a split batch."""
    mesh = _mesh(MESHES["fsdp2-expert2-tensor2"])
    table, index, found = (
        NamedSharding(mesh, spec)
        for spec in (
            PartitionSpec(None, "fsdp"),
            PartitionSpec(("fsdp", "expert")),
            PartitionSpec(("fsdp", "expert")),
        )
    )
    lookup = jax.jit(
        lambda table_VD, index_B: table_VD[index_B],
        in_shardings=(table, index),
        out_shardings=found,
    )
    said = compiler_says(lookup, jnp.ones((37, 24)), jnp.zeros((16,), jnp.int32))
    assert REPLICATES in said


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "tied"), [*((name, False) for name in MESHES), ("fsdp2-expert2-tensor2", True)]
)
def test_no_activation_is_copied_whole_to_every_device(name, tied, compiler_says):
    """The train step compiles without that warning."""
    config = dataclasses.replace(CONFIG, tie_embeddings=tied, num_decoder_layers=1)
    mesh, optimizer = _mesh(MESHES[name]), optax.sgd(0.1)
    init = functools.partial(onerec.init_params, config)
    state = abstract_state(init, optimizer, mesh=mesh, rules=RULES)
    train_step = make_train_step(
        functools.partial(next_token_loss, config, mesh),
        optimizer,
        mesh=mesh,
        state_shardings=jax.tree.map(lambda leaf: leaf.sharding, state),
    )
    said = compiler_says(train_step, state, to_device(_batch(0), mesh), jax.random.key(1))
    assert REPLICATES not in said


def test_embedding_tables_lie_in_equal_parts_on_all_devices_that_share_parameters():
    """Each of the fsdp x tensor = 8 devices holds an eighth of the elements, V odd or not."""
    mesh = _mesh(MESHES["fsdp4-tensor2"])
    tables = onerec.abstract_params(CONFIG, mesh)["embeddings"]
    for name in ("tokens", "outputs"):
        shape = tables[name].shape
        assert shape[0] % 2 == 1
        assert np.prod(tables[name].sharding.shard_shape(shape)) * 8 == np.prod(shape)


def test_a_layer_gathers_its_weights_in_the_compute_dtype_and_leaves_experts_split():
    """Of fsdp=4 x tensor=2 only the split over `tensor` is left, in training and in generation."""
    mesh = _mesh(MESHES["fsdp4-tensor2"])
    config = dataclasses.replace(CONFIG, compute_dtype=ComputeDtype.BFLOAT16)
    abstract = onerec.abstract_params(config, mesh)

    def first_layer(params):
        prepared = onerec.for_many_steps(config, params, mesh)
        encoder = jax.tree.map(lambda leaf: leaf[0], params["encoder"]["layers"])
        return gathered_layer(config, encoder, mesh), prepared["decoder"]["layers"][0]

    encoder, decoder = jax.jit(first_layer).lower(abstract).compile().output_shardings
    shapes = jax.eval_shape(first_layer, abstract)
    up = shapes[0]["feed_forward"]["up"]["kernel"]
    assert (up.dtype, encoder["feed_forward"]["up"]["kernel"].shard_shape(up.shape)) == (
        jnp.bfloat16,
        (24, 20),
    )
    out = shapes[1]["cross_attention"]["out"]["kernel"]
    assert (out.dtype, decoder["cross_attention"]["out"]["kernel"].shard_shape(out.shape)) == (
        jnp.bfloat16,
        (1, 12, 24),
    )
    experts = shapes[1]["moe"]["experts"]["up"]
    assert experts.dtype == jnp.float32
    assert decoder["moe"]["experts"]["up"].shard_shape(experts.shape) == (8, 6, 10)


def test_one_device_leaves_a_layer_as_it_is():
    layer = {"attention": {"out": {"kernel": jnp.ones((2, 12, 24))}}}
    for mesh in (None, _mesh(ONE), _mesh(MESHES["data8"])):
        assert gathered_layer(CONFIG, layer, mesh) is layer
