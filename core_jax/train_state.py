"""The train state, and how it is born sharded: abstract values, then shardings, then arrays.

Dimension key: none.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from core_jax.arrays import Array, Key, Params, PyTree
from core_jax.memory import check_memory
from core_jax.mesh import replicated
from core_jax.sharding import Rules, match_rules

InitParams = Callable[..., Params]
"""A model's initialiser with its config bound: called as `init_params(key=key)`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that a training run carries from step to step.

    The fields are typed as trees because abstract values and shardings also travel in it.
    """

    step: PyTree
    """Int32 scalar: steps taken, skipped ones included."""
    params: PyTree
    """Model parameters, float32."""
    opt_state: PyTree
    """The optimizer's state."""
    skipped_total: PyTree
    """Int32 scalar: steps whose update was skipped because it was not finite."""
    skipped_in_a_row: PyTree
    """Int32 scalar: skipped steps since the last good one."""


def init_state(
    init_params: InitParams,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    rules: Rules,
    key: Key[Array, ""],
) -> tuple[TrainState, TrainState]:
    """Initialises a train state whose arrays are created where they live.

    Args:
      init_params: called as `init_params(key=key)`.
      optimizer: initialised on the parameters.
      mesh: device mesh.
      rules: sharding rules of the parameters; the optimizer's state follows them.
      key: random key.

    Returns:
      The state, and a TrainState of its shardings.

    Raises:
      ConfigError: a rule is missing or does not fit, see `match_rules`; or the state is larger
        than the devices' memory, see `check_memory`.
    """
    abstract = _abstract(init_params, optimizer)
    shardings = _shardings(abstract, mesh=mesh, rules=rules)
    check_memory(abstract, shardings, mesh=mesh, what="parameters and optimizer state")
    build = jax.jit(lambda key: _build(init_params, optimizer, key=key), out_shardings=shardings)
    return build(key), shardings


def abstract_state(
    init_params: InitParams,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    rules: Rules,
) -> TrainState:
    """Describes a train state without creating an array: the target of a restore.

    Args:
      init_params: called as `init_params(key=key)`, in the abstract.
      optimizer: initialised on the parameters, in the abstract.
      mesh: device mesh.
      rules: sharding rules of the parameters; the optimizer's state follows them.

    Returns:
      A TrainState of `jax.ShapeDtypeStruct` with shardings.

    Raises:
      ConfigError: a rule is missing or does not fit, see `match_rules`.
    """
    abstract = _abstract(init_params, optimizer)
    shardings = _shardings(abstract, mesh=mesh, rules=rules)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )


def _build(
    init_params: InitParams, optimizer: optax.GradientTransformation, *, key: Key[Array, ""]
) -> TrainState:
    """A fresh state; its counters are separate arrays because the train step donates them."""
    params = init_params(key=key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        skipped_total=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def _abstract(init_params: InitParams, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes and dtypes of a fresh state."""
    return jax.eval_shape(lambda: _build(init_params, optimizer, key=jax.random.key(0)))


def _shardings(abstract: TrainState, *, mesh: Mesh, rules: Rules) -> TrainState:
    """The state's shardings; parameters come first so that errors name them, not their moments."""
    return TrainState(
        step=replicated(mesh),
        params=match_rules(rules, abstract.params, mesh),
        opt_state=match_rules(rules, abstract.opt_state, mesh),
        skipped_total=replicated(mesh),
        skipped_in_a_row=replicated(mesh),
    )
