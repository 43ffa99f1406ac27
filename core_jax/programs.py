"""What a job compiles for its devices, told by shapes alone.

A program is lowered for a mesh of devices that need not exist: a TPU slice that is only described.

Dimension key: none.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import optax
from jax.sharding import Mesh

from core_jax.arrays import Params, PyTree
from core_jax.memory import device_bytes
from core_jax.mesh import BATCH_AXES, MeshConfig, batch_sharding, replicated
from core_jax.nn.stack import Remat
from core_jax.sharding import Rules, match_rules
from core_jax.train_state import InitParams, TrainState, abstract_state
from core_jax.train_step import TrainStep


class Kind(enum.Enum):
    """What device memory is taken by."""

    PARAMETERS = "parameters"
    """Parameters, those that nobody trains included."""
    OPTIMIZER = "optimizer state"
    """The optimizer's state."""
    CACHE = "cached keys and values"
    """Keys and values of the tokens so far, and the state of the rows that they belong to."""
    INPUTS = "inputs"
    """The batch, keys, tables."""
    TEMPORARIES = "activations and temporaries"
    """Activations, gradients, results and the compiler's scratch."""
    CODE = "code"
    """The compiled program."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A change of the config that takes less memory.

    Attributes:
      flag: as on the command line.
      what: what it does, and what it costs.
      keeps: by kind of memory the share that is left, as a rule of thumb.
    """

    flag: str
    what: str
    keeps: Mapping[Kind, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One compiled function of a job.

    Attributes:
      name: of the program within its job.
      mesh: how the devices are arranged.
      lower: lowers it for a mesh, from abstract values.
      held: by kind, its arguments: abstract values with shardings.
      model_flops: FLOPs of a call over all devices that the result needs (multiply-adds are two).
      hardware_flops: those that are done: recomputation in the backward pass is counted.
      tokens: tokens of a call, for tokens per second.
      batch_size: rows of a call, and `num_microbatches` its sequential parts.
      num_microbatches: sequential parts of a call.
      settings: changes of the config that take less memory, given the mesh.
      beside: by kind, what lies on the mesh as well while it runs and is no argument of it.
      loop_steps: how often a loop runs whose length depends on data, at most.
    """

    name: str
    mesh: MeshConfig
    lower: Callable[[Mesh], jax.stages.Lowered]
    held: Callable[[Mesh], Mapping[Kind, PyTree]]
    model_flops: float
    hardware_flops: float
    tokens: int
    batch_size: int
    num_microbatches: int
    settings: Callable[[Mesh], Sequence[Setting]]
    beside: Callable[[Mesh], Mapping[Kind, PyTree]] = lambda mesh: {}
    loop_steps: int = 1


def abstract_key(mesh: Mesh) -> PyTree:
    """A random key on every device of a mesh, in the abstract."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(mesh))


def abstract_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Shapes and dtypes with the sharding of a batch.

    Args:
      tree: of `jax.ShapeDtypeStruct`, or None where there is no leaf; leading dimensions are rows.
      mesh: device mesh.
    """
    return placed(tree, jax.tree.map(lambda _: batch_sharding(mesh), tree))


def abstract_replicated(tree: PyTree, mesh: Mesh) -> PyTree:
    """Shapes and dtypes of what every device holds whole."""
    return placed(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def abstract_params(make: Callable[[], Params], rules: Rules, mesh: Mesh) -> Params:
    """Parameters that are never made, with the shardings of a table of rules."""
    abstract = jax.eval_shape(make)
    return placed(abstract, match_rules(rules, abstract, mesh))


def placed(tree: PyTree, shardings: PyTree) -> PyTree:
    """Shapes and dtypes with shardings.

    Args:
      tree: of arrays or `jax.ShapeDtypeStruct`.
      shardings: tree of the same structure.
    """
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """A train step by its parts, each as its stage makes it.

    Attributes:
      init_params: called as `init_params(key=key)`.
      optimizer: as the stage trains with.
      rules: sharding rules of the parameters.
      step: (mesh, shardings of the state, frozen parameters or None) -> the train step.
      batch: shapes and dtypes of a batch.
      frozen: makes the parameters that nobody trains, or None.
    """

    init_params: InitParams
    optimizer: optax.GradientTransformation
    rules: Rules
    step: Callable[[Mesh, TrainState, Params | None], TrainStep]
    batch: PyTree
    frozen: Callable[[], Params] | None = None

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """Lowers the step for a mesh."""
        state = self._state(mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        step = self.step(mesh, shardings, self._frozen(mesh))
        batch = abstract_batch(self.batch, mesh)
        return cast(Any, step).lower(state, batch, abstract_key(mesh))

    def held(self, mesh: Mesh) -> Mapping[Kind, PyTree]:
        """What lies on the mesh while the step runs."""
        state = self._state(mesh)
        return {
            Kind.PARAMETERS: (state.params, self._frozen(mesh)),
            Kind.OPTIMIZER: state.opt_state,
            Kind.INPUTS: abstract_batch(self.batch, mesh),
        }

    def _state(self, mesh: Mesh) -> TrainState:
        return abstract_state(self.init_params, self.optimizer, mesh=mesh, rules=self.rules)

    def _frozen(self, mesh: Mesh) -> Params | None:
        return None if self.frozen is None else abstract_params(self.frozen, self.rules, mesh)


def held_bytes(tree: PyTree) -> int:
    """Bytes that abstract values with shardings take on each device, padding left out."""
    return device_bytes(tree, jax.tree.map(lambda leaf: leaf.sharding, tree))


def train_settings(
    mesh: Mesh,
    *,
    mesh_flag: str,
    part_flag: str,
    remat_flag: str,
    remat: Remat,
    batch_size: int,
    num_microbatches: int,
) -> list[Setting]:
    """Changes of a train step's config that take less memory and can be made on this mesh.

    Args:
      mesh: where the step is to run.
      mesh_flag: of the mesh's config ("--mesh").
      part_flag: before batch-size and num-microbatches ("--pretrain").
      remat_flag: of what the backward pass keeps.
      remat: how it is set.
      batch_size: rows per step.
      num_microbatches: sequential parts of a step.
    """
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    found = spread_settings(mesh, mesh_flag)
    if remat is not Remat.FULL:
        found.append(
            Setting(
                flag=f"{remat_flag} full",
                what="the backward pass computes each layer anew; a third more FLOPs",
                keeps={Kind.TEMPORARIES: 0.3},
            )
        )
    if batch_size % (2 * num_microbatches * shards) == 0:
        found.append(
            Setting(
                flag=f"{part_flag}num-microbatches {2 * num_microbatches}",
                what="half the rows at a time; the same result",
                keeps={Kind.TEMPORARIES: 0.5},
            )
        )
    if batch_size % (2 * shards * num_microbatches) == 0:
        found.append(
            Setting(
                flag=f"{part_flag}batch-size {batch_size // 2}",
                what="half the batch; another training",
                keeps={Kind.TEMPORARIES: 0.55, Kind.INPUTS: 0.5},
            )
        )
    return found


def spread_settings(mesh: Mesh, mesh_flag: str) -> list[Setting]:
    """Axes along which more devices can share parameters and optimizer state."""
    fsdp, data = mesh.shape["fsdp"], mesh.shape["data"]
    if data % 2:
        return []
    return [
        Setting(
            flag=f"{mesh_flag}.fsdp {2 * fsdp} {mesh_flag}.data {data // 2}",
            what="twice as many devices share parameters and optimizer state",
            keeps={Kind.PARAMETERS: 0.5, Kind.OPTIMIZER: 0.5},
        )
    ]
