"""What is trained of a loaded model, all parameters or adapters beside them: birth, return, looks.

Dimension key: none.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from core_jax.arrays import Key, Params, PyTree
from core_jax.checkpoint import restore_params
from core_jax.data.pipeline import whole_to_device
from core_jax.loop import Evaluate
from core_jax.metrics import compute, merge
from core_jax.sharding import match_rules
from core_jax.train_state import TrainState, init_state
from core_jax.train_step import Objective, make_eval_step
from reasoning_jax.model import decoder_lm, lora
from reasoning_jax.model.config import DecoderConfig, LoraConfig
from reasoning_jax.model.shardings import RULES
from reasoning_jax.weights.model_source import LoadedModel


@runtime_checkable
class Rows(Protocol):
    """Rows that can be read once, in order."""

    def in_order(self, batch_size: int) -> Iterator[PyTree]:
        """Batches of one shape."""
        ...


def born(
    model: LoadedModel,
    adapters: LoraConfig,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    key: Key[jax.Array, ""],
) -> tuple[TrainState, TrainState]:
    """The first train state: fresh adapters, or float32 copies of the model's parameters.

    Args:
      model: what training starts from.
      adapters: rank 0 trains all parameters.
      optimizer: whose state is born with them.
      mesh: where they are to be.
      key: of fresh adapters.

    Returns:
      The state, which the train step may give up, and its shardings.
    """
    state, shardings = init_state(
        initialiser(model.config, adapters), optimizer, mesh=mesh, rules=RULES, key=key
    )
    if adapters.rank:
        return state, shardings
    # The loaded weights are the start; the state was born with others of the same shapes.
    copy = jax.jit(
        lambda tree: jax.tree.map(lambda leaf: leaf.astype(np.float32) + 0.0, tree),
        out_shardings=shardings.params,
    )
    return dataclasses.replace(state, params=copy(model.params)), shardings


def restored(
    model: LoadedModel,
    adapters: LoraConfig,
    folder: str | os.PathLike[str],
    *,
    step: int,
    mesh: Mesh,
) -> Params:
    """What a finished training left: adapters, or all parameters (float32).

    Args:
      model: what it started from.
      adapters: as they were trained.
      folder: of its checkpoints.
      step: which checkpoint.
      mesh: where the parameters are to be.
    """
    init = initialiser(model.config, adapters)
    abstract = jax.eval_shape(lambda: init(key=jax.random.key(0)))
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        match_rules(RULES, abstract, mesh),
    )
    return restore_params(folder, target, step=step)


def looks(
    objective: Objective,
    rows: Rows,
    batch_size: int,
    *,
    mesh: Mesh,
    frozen: Params | None,
    prefix: str,
) -> Evaluate:
    """Loss and metrics over all rows.

    Args:
      objective: of the training.
      rows: at least one.
      batch_size: rows at a time.
      mesh: device mesh.
      frozen: as in `core_jax.train_step.make_eval_step`.
      prefix: before the names of loss and metrics.
    """
    eval_step = make_eval_step(objective, mesh=mesh, frozen=frozen)

    def evaluate(state: Any) -> dict[str, float]:
        totals = None
        for batch in rows.in_order(batch_size):
            metrics = eval_step(state.params, whole_to_device(batch, mesh))
            totals = metrics if totals is None else merge(totals, metrics)
        assert totals is not None, "there is at least one row"
        values = compute(totals)
        return {
            f"{prefix}{name}": value for name, value in values.items() if isinstance(value, float)
        }

    return evaluate


def initialiser(config: DecoderConfig, adapters: LoraConfig) -> Callable[..., Params]:
    """What the train state's parameters are born as."""
    if adapters.rank:
        return functools.partial(lora.init_lora, config, adapters)
    return functools.partial(decoder_lm.init_params, config)
