"""What is trained in two processes, in one on 8 devices, and on one device: small, by the mesh.

Both models are cut to sizes that every mesh here splits; one token of no expert is dropped, since
only then the sharded model is the same function.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from core_jax.checkpoint import Checkpoints, Restored
from core_jax.data.pipeline import Pipeline, Share, host_share, make_pipeline, to_device
from core_jax.mesh import MeshConfig, replicated
from core_jax.metrics import compute
from core_jax.optim import OptimConfig, make_optimizer
from core_jax.sharding import Rules
from core_jax.train_state import TrainState, abstract_state, init_state
from core_jax.train_step import TrainStep, make_train_step
from reasoning_jax.align.methods import Loss, MethodConfig
from reasoning_jax.align.objective import preference_objective
from reasoning_jax.align.pair_rows import PairRows, PairRowsConfig, TokenPair, to_pair_batch
from reasoning_jax.model import decoder_lm, presets
from reasoning_jax.model import shardings as decoder_shardings
from rec_jax.batch import SessionBatch
from rec_jax.model import onerec
from rec_jax.model import shardings as onerec_shardings
from rec_jax.model.config import OneRecConfig
from rec_jax.moe.router import Balance
from rec_jax.objectives import next_token_loss

ROWS, SEED = 8, 3
SGD_STEPS, ADAM_STEPS, SAVED_STEP = 5, 8, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model with its objective and data."""

    name: str
    init: Callable[..., Any]
    objective: Callable[[Mesh], Callable[..., Any]]
    rules: Rules
    source: Any
    transform: Callable[..., Any]
    mesh: MeshConfig
    """Of 8 devices, in one process or in two."""

    def pipeline(self, share: Share) -> Pipeline:
        """Batches of `ROWS` rows in random order."""
        return make_pipeline(
            self.source, batch_size=ROWS, seed=SEED, transform=self.transform, share=share
        )


ONEREC = OneRecConfig(
    level_sizes=(7, 5),
    history_items=3,
    session_items=2,
    d_model=16,
    num_heads=2,
    head_dim=8,
    d_ff=24,
    num_encoder_layers=1,
    num_decoder_layers=1,
    num_experts=4,
    experts_per_token=2,
    d_expert=12,
    balance=Balance.LOSS_FREE,
    capacity_factor=4.0,
)


class Sessions:
    """29 examples of semantic IDs, some of them padded."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self._seeds = draw.integers(0, 1 << 30, 29)

    def __len__(self) -> int:
        return len(self._seeds)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(self._seeds[index])

        def codes(length: int) -> np.ndarray:
            columns = [draw.integers(0, size, length) for size in ONEREC.level_sizes]
            return np.stack(columns, axis=-1).astype(np.int32)

        return {
            "history_codes": codes(ONEREC.history_items),
            "history_mask": np.arange(ONEREC.history_items) >= draw.integers(0, 3),
            "target_codes": codes(ONEREC.session_items),
            "target_mask": np.arange(ONEREC.session_items) < draw.integers(1, 3),
        }


DECODER = dataclasses.replace(
    presets.tiny(),
    vocab_size=64,
    model_dim=16,
    hidden_dim=24,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
)


def pair_rows() -> PairRows:
    """Rows of pairs of random tokens, with log-probabilities and weights."""
    draw = np.random.default_rng(1)
    pairs = []
    for _ in range(23):
        sizes = draw.integers(4, 12, 2).tolist()
        lengths = [size - 2 for size in sizes]
        pairs.append(
            TokenPair(
                token_ids=tuple(
                    draw.integers(0, DECODER.vocab_size, size).tolist() for size in sizes
                ),
                response_starts=(2, 2),
                reference=tuple(-draw.uniform(1, 5, n).astype(np.float32) for n in lengths),
                weights=tuple(draw.uniform(0, 1, n).astype(np.float32) for n in lengths),
            )
        )
    return PairRows(pairs, PairRowsConfig(row_length=24))


CASES = {
    "onerec": Case(
        name="onerec",
        init=functools.partial(onerec.init_params, ONEREC),
        objective=lambda mesh: functools.partial(next_token_loss, ONEREC, mesh),
        rules=onerec_shardings.RULES,
        source=Sessions(),
        transform=lambda batch: SessionBatch(**batch),
        mesh=MeshConfig(data=1, fsdp=4, expert=2),  # parameters lie in parts in both processes
    ),
    "cdpo": Case(
        name="cdpo",
        init=functools.partial(decoder_lm.init_params, DECODER),
        objective=lambda mesh: functools.partial(
            preference_objective,
            config=DECODER,
            method=MethodConfig(loss=Loss.DPO, beta=0.7),
            chunk=5,
            mesh=mesh if mesh.size > 1 else None,
        ),
        rules=decoder_shardings.RULES,
        source=pair_rows(),
        transform=to_pair_batch,
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),  # each process has all parameters
    ),
}


def sgd() -> optax.GradientTransformation:
    """Its state holds the last gradient."""
    return optax.sgd(0.1, momentum=0.0)


def adam() -> optax.GradientTransformation:
    """The real optimizer, the router's sign updates included."""
    return make_optimizer(OptimConfig(learning_rate=1e-2, clip_norm=1.0), ADAM_STEPS)


def whole(tree: Any, mesh: Mesh) -> Any:
    """A tree of any sharding on the host of every process."""
    return jax.device_get(tree if jax.process_count() == 1 else _everywhere(mesh)(tree))


@functools.cache
def _everywhere(mesh: Mesh) -> Callable[[Any], Any]:
    """Copies every leaf to all devices; one function, so that it is compiled once for a tree."""
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def key_on(mesh: Mesh) -> jax.Array:
    """One key in all processes."""
    words = np.asarray(jax.random.key_data(jax.random.key(5)))
    return jax.random.wrap_key_data(
        jax.make_array_from_process_local_data(replicated(mesh), words, words.shape)
    )


def measure(
    case: Case, mesh: Mesh, checkpoints: Checkpoints
) -> tuple[dict[str, np.ndarray], TrainState]:
    """Loss and gradient at the first parameters, five SGD steps, a curve of Adam; saves on the way.

    SGD with a momentum of 0 keeps the gradient in its state: one program serves both.

    Returns:
      What was found by name, and the saved state on the host.
    """
    born, _ = init_state(case.init, adam(), mesh=mesh, rules=case.rules, key=jax.random.key(0))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, _abstract(case, mesh, sgd()).opt_state)
    opt_state = jax.jit(sgd().init, out_shardings=shardings)(born.params)
    state = dataclasses.replace(jax.tree.map(jnp.copy, born), opt_state=opt_state)
    found, losses = {}, []
    step, pipeline, key = (
        _step(case.name, mesh, "sgd"),
        case.pipeline(host_share(mesh)),
        key_on(mesh),
    )
    for number in range(SGD_STEPS):
        state, metrics = step(state, to_device(next(pipeline), mesh), key)
        losses.append(compute(metrics)["loss"])
        if number == 0:
            found |= dict(named("gradient", whole(state.opt_state[0].trace, mesh)))
    found |= {"sgd": np.asarray(losses)} | dict(named("after", whole(state.params, mesh)))

    state, step = born, _step(case.name, mesh, "adam")
    pipeline, losses, kept = case.pipeline(host_share(mesh)), [], None
    for number in range(1, ADAM_STEPS + 1):
        state, metrics = step(state, to_device(next(pipeline), mesh), key)
        losses.append(compute(metrics)["loss"])
        if number == SAVED_STEP:
            kept, position = whole(state, mesh), pipeline.get_position()
            checkpoints.save(number, state, position=position, fingerprint=case.name)
    assert kept is not None
    return found | {"adam": np.asarray(losses)}, kept


def _abstract(case: Case, mesh: Mesh, optimizer: Any) -> TrainState:
    """A state's shapes and shardings."""
    return abstract_state(case.init, optimizer, mesh=mesh, rules=case.rules)


@functools.cache
def _step(name: str, mesh: Mesh, kind: str) -> TrainStep:
    """A case's train step; one function, so that it is compiled once in a process."""
    case, optimizer = CASES[name], sgd() if kind == "sgd" else adam()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, _abstract(case, mesh, optimizer))
    return make_train_step(case.objective(mesh), optimizer, mesh=mesh, state_shardings=shardings)


def restore(case: Case, mesh: Mesh, folder: pathlib.Path) -> Restored:
    """What was saved in a folder, onto this mesh."""
    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(_abstract(case, mesh, adam()), fingerprint=case.name)
    assert restored is not None and restored.step == SAVED_STEP
    return restored


def rest_of_curve(case: Case, mesh: Mesh, restored: Restored) -> np.ndarray:
    """Losses of the steps that follow a restored state, on the batches that follow."""
    state, losses, step = restored.state, [], _step(case.name, mesh, "adam")
    pipeline, key = case.pipeline(host_share(mesh)), key_on(mesh)
    pipeline.set_position(restored.position)
    for _ in range(SAVED_STEP, ADAM_STEPS):
        state, metrics = step(state, to_device(next(pipeline), mesh), key)
        losses.append(compute(metrics)["loss"])
    return np.asarray(losses)


def named(prefix: str, tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Leaves by their path."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield f"{prefix} {jax.tree_util.keystr(path)}", np.asarray(leaf)
