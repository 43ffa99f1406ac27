"""The one place with value_and_grad, microbatches, update, jit and donation.

Dimension key: G microbatches, B batch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from core_jax.arrays import Array, Key, Params, PyTree
from core_jax.mesh import BATCH_AXES, batch_sharding, check_batch_divisible, replicated
from core_jax.metrics import Metrics, Ratio
from core_jax.optim import loss_gradient_norm
from core_jax.processes import settled, several
from core_jax.train_state import TrainState

Objective = Callable[..., tuple[Ratio, Metrics]]
"""(params, batch, *, key) -> loss and further metrics; `key` is None in evaluation. The loss is
`total / count`, summed over the examples of the batch: that is what makes microbatches exact.
Where the step is made with `frozen` parameters, they come as one more keyword, `frozen`."""

TrainStep = Callable[[TrainState, PyTree, Key[Array, ""]], tuple[TrainState, Metrics]]
"""(state, batch, key) -> next state and metrics; the state passed in is given up."""

EvalStep = Callable[[Params, PyTree], Metrics]
"""(params, batch) -> metrics."""


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    state_shardings: TrainState,
    num_microbatches: int = 1,
    schedule: optax.Schedule | None = None,
    frozen: Params | None = None,
) -> TrainStep:
    r"""Builds the jitted train step.

    The gradient is that of :math:`\sum_g total_g / \sum_g count_g` over the microbatches g: it
    does not depend on how many there are. When the loss or the norm of the gradient is not
    finite (a batch without a single target included), parameters and optimizer state stay as
    they were, the step is counted as skipped, and its other metrics count nothing.

    Args:
      objective: what to minimise; its metrics must not be called as those below.
      optimizer: called with gradients, its state and the parameters.
      mesh: device mesh.
      state_shardings: from `init_state`.
      num_microbatches: sequential parts of a batch; divides memory for activations.
      schedule: learning rate by update number, only to report it.
      frozen: parameters that the objective reads and nobody trains (a base under adapters), on
        the mesh already; None where there are none. They are neither saved nor given up.

    Returns:
      (state, batch, key) -> (state, metrics). Every leaf of the batch has the leading dimension
      B, sharded as `batch_sharding(mesh)`; the state is donated. It has `jax.jit`'s `lower`, which
      takes abstract values as well (`frozen` may be abstract then). The key stays the same over the
      run: it is folded with `state.step`. Added metrics: "loss", "grad_norm" (before clipping,
      without router-balancing biases), "skipped" and, with a schedule, "learning_rate".

    Raises:
      ConfigError: at the first call, when B does not split into microbatches over the mesh.
    """

    def train_step(
        state: TrainState, batch: PyTree, key: Key[Array, ""], frozen: Params | None = None
    ) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        loss, metrics, grads = _accumulate(
            _with_frozen(objective, frozen),
            state.params,
            batch,
            step_key,
            mesh,
            state_shardings.params,
            num_microbatches,
        )
        finite = jnp.isfinite(loss.total / loss.count) & jnp.isfinite(optax.tree.norm(grads))
        added = {"loss": loss, "grad_norm": _single(loss_gradient_norm(grads))}
        if schedule is not None:
            added["learning_rate"] = _single(schedule(state.step - state.skipped_total))
        zeros = jax.tree.map(jnp.zeros_like, metrics | added)
        metrics = _select(finite, _join(metrics, added), zeros)
        metrics["skipped"] = _single((~finite).astype(jnp.float32))
        return _advance(optimizer, state, grads, finite), metrics

    shardings = (state_shardings, batch_sharding(mesh), replicated(mesh))
    if frozen is not None:
        shardings = (*shardings, None)
    compiled = jax.jit(
        train_step,
        in_shardings=shardings,
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return compiled if frozen is None else _Beside(compiled, frozen)


@dataclasses.dataclass(frozen=True)
class _Beside:
    """A compiled step with its frozen parameters bound, called and lowered without them."""

    compiled: Callable[..., tuple[TrainState, Metrics]]
    frozen: Params

    def __call__(
        self, state: TrainState, batch: PyTree, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        return self.compiled(state, batch, key, self.frozen)

    def lower(self, state: TrainState, batch: PyTree, key: PyTree) -> jax.stages.Lowered:
        """As `jax.jit`'s `lower`: of arrays or of abstract values."""
        return cast(Any, self.compiled).lower(state, batch, key, self.frozen)


def make_eval_step(objective: Objective, *, mesh: Mesh, frozen: Params | None = None) -> EvalStep:
    """Builds the jitted evaluation step.

    Args:
      objective: called with `key=None`: no randomness.
      mesh: device mesh.
      frozen: as in `make_train_step`.

    Returns:
      (params, batch) -> the objective's metrics and "loss", replicated. Merge them over batches
      with `core_jax.metrics.merge`.
    """

    def eval_step(params: Params, batch: PyTree, frozen: Params | None = None) -> Metrics:
        loss, metrics = _with_frozen(objective, frozen)(params, batch, key=None)
        return _join(metrics, {"loss": loss})

    shardings = (None, batch_sharding(mesh), *(() if frozen is None else (None,)))
    compiled = jax.jit(eval_step, in_shardings=shardings, out_shardings=replicated(mesh))
    rest = () if frozen is None else (frozen,)
    if rest or several():
        return lambda params, batch: settled(compiled(params, batch, *rest))
    return compiled


def _with_frozen(objective: Objective, frozen: Params | None) -> Objective:
    """The objective with its frozen parameters bound, if there are any."""
    return objective if frozen is None else functools.partial(objective, frozen=frozen)


def _accumulate(
    objective: Objective,
    params: Params,
    batch: PyTree,
    key: Key[Array, ""],
    mesh: Mesh,
    param_shardings: PyTree,
    num_microbatches: int,
) -> tuple[Ratio, Metrics, Params]:
    """Loss, metrics and gradient of a batch, one microbatch after the other."""
    check_batch_divisible(jax.tree.leaves(batch)[0].shape[0], num_microbatches, mesh)

    def total_of(params: Params, batch: PyTree, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        loss, metrics = objective(params, batch, key=key)
        return loss.total, (loss, metrics)

    def add(grads: Params, part: tuple[PyTree, PyTree]) -> tuple[Params, PyTree]:
        part_grads, aux = jax.grad(total_of, has_aux=True)(params, *part)
        grads = jax.tree.map(jnp.add, grads, part_grads)
        return jax.lax.with_sharding_constraint(grads, param_shardings), aux

    zeros = jax.tree.map(jnp.zeros_like, params)
    if num_microbatches == 1:
        grads, (loss, metrics) = add(zeros, (batch, key))
    else:
        parts = _split(batch, num_microbatches, mesh), jax.random.split(key, num_microbatches)
        grads, stacked = jax.lax.scan(add, zeros, parts)
        loss, metrics = jax.tree.map(lambda parts: jnp.sum(parts, axis=0), stacked)
    grads = jax.tree.map(lambda grad: grad / loss.count, grads)
    return loss, metrics, grads


def _advance(
    optimizer: optax.GradientTransformation, state: TrainState, grads: Params, finite: PyTree
) -> TrainState:
    """The next state: updated where `finite` (scalar bool), else only counted."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(
        step=state.step + 1,
        params=_select(finite, params, state.params),
        opt_state=_select(finite, opt_state, state.opt_state),
        skipped_total=state.skipped_total + (~finite).astype(jnp.int32),
        skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
    )


def _split(batch: PyTree, num_microbatches: int, mesh: Mesh) -> PyTree:
    """[B, ...] -> [G, B / G, ...]; part g takes rows g, g + G, ...: no row leaves its device."""
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

    def split(leaf_B: Array) -> Array:
        leaf_BG = leaf_B.reshape(-1, num_microbatches, *leaf_B.shape[1:])
        return jax.lax.with_sharding_constraint(jnp.swapaxes(leaf_BG, 0, 1), sharding)

    return jax.tree.map(split, batch)


def _single(value: PyTree) -> Ratio:
    """A metric that counts once per step."""
    return Ratio(total=value, count=jnp.ones((), jnp.float32))


def _join(metrics: Metrics, added: Metrics) -> Metrics:
    """The objective's metrics and the step's own."""
    clash = metrics.keys() & {*added, "skipped"}
    assert not clash, f"the objective names a metric {sorted(clash)}; the step adds its own"
    return metrics | added


def _select(condition: PyTree, chosen: PyTree, otherwise: PyTree) -> PyTree:
    """`chosen` where the scalar condition holds, else `otherwise`, leaf by leaf."""
    return jax.tree.map(lambda yes, no: jnp.where(condition, yes, no), chosen, otherwise)
