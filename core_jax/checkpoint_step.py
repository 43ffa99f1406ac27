"""One step folder of a checkpoint: Orbax arrays beside a JSON part that says what they must be.

Orbax notices neither a flipped bit nor a dtype that it casts on reading, so what is read is held
against the leaf table in the JSON part, which has a sha256 of itself.
"""

import contextlib
import gc
import hashlib
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from core_jax.arrays import PyTree
from core_jax.leaf_table import (
    LeafTable,
    checksum_problem,
    leaf_table,
    named_leaves,
    structure_problem,
)

_T = TypeVar("_T")
_FORMAT = 1
_STRAY_SECONDS = 0.3
_STRAY_WARNING = r"coroutine '.*' was never awaited"
_STRAY_WORDS = ("Event loop is closed", "Encountered error while reading array index")


class DamagedError(Exception):
    """A step that cannot be used; the message says why."""


def _raise_if(problem: str) -> None:
    """Raises unless there is no problem."""
    if problem:
        raise DamagedError(problem)


def save_arguments(
    state: PyTree,
    *,
    step: int,
    position: dict[str, Any],
    fingerprint: str,
    score: float | None,
) -> ocp.args.Composite:
    """Returns what Orbax is to write for one step: the arrays, and the verified JSON part."""
    meta = {
        "format": _FORMAT,
        "step": step,
        "fingerprint": fingerprint,
        "position": position,
        "score": score,
        "leaves": leaf_table(state),
    }
    return ocp.args.Composite(
        state=ocp.args.PyTreeSave(_to_stored(state)),
        meta=ocp.args.JsonSave({"meta": meta, "sha256": _digest(meta)}),
    )


def read_meta(root: epath.Path, step: int) -> dict[str, Any]:
    """Reads the JSON part of one step: the fields that `save_arguments` wrote.

    Raises:
      DamagedError: it does not match its own sha256 (other errors as the file system gives them).
    """
    folder = root / str(step)
    if not any(folder.iterdir()):
        raise DamagedError("the folder is empty")
    content = ocp.JsonCheckpointHandler().restore(folder / "meta")
    if content["sha256"] != _digest(content["meta"]):
        raise DamagedError("meta does not match its own sha256")
    if content["meta"]["format"] != _FORMAT:
        raise DamagedError(f"format {content['meta']['format']} is not {_FORMAT}")
    return content["meta"]


def read_state(root: epath.Path, step: int, abstract_tree: PyTree, expected: LeafTable) -> PyTree:
    """Reads the leaves of `abstract_tree` onto its shardings and verifies each.

    Args:
      root: the folder of the steps.
      step: which step.
      abstract_tree: pytree of arrays or `jax.ShapeDtypeStruct`.
      expected: the table of these leaves as they were saved.

    Raises:
      DamagedError: a file cannot be read, or a path, dtype, shape or checksum differs.
    """
    _raise_if(structure_problem(abstract_tree, expected))
    tree = agreed(lambda: _read_leaves(root / str(step) / "state", abstract_tree))
    _raise_if(checksum_problem(leaf_table(tree), expected))
    return tree


def _read_leaves(folder: epath.Path, abstract_tree: PyTree) -> PyTree:
    """Reads arrays from Orbax onto the shardings of `abstract_tree`."""
    targets = named_leaves(abstract_tree)
    data = {path: _abstract_data(leaf) for path, leaf in targets.items()}
    wanted = _nested({path: leaf for path, leaf in data.items() if leaf.size})
    arguments = ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    with _strays_silenced():
        found = named_leaves(ocp.PyTreeCheckpointHandler().restore(folder, args=arguments))
    leaves = []
    for path, target in targets.items():
        empty = data[path]
        leaf = found.get(path)
        if leaf is None:
            leaf = jnp.zeros(empty.shape, empty.dtype, device=empty.sharding)
        if jnp.issubdtype(target.dtype, jax.dtypes.prng_key):
            leaf = jax.random.wrap_key_data(leaf, impl=target.dtype)
        leaves.append(leaf)
    return jax.tree.structure(abstract_tree).unflatten(leaves)


@contextlib.contextmanager
def _strays_silenced() -> Iterator[None]:
    """Silences the reads that go on after another has failed.

    When one array cannot be read, Orbax closes its event loop under the reads of the others, and
    each prints a traceback from a thread of its own; reads that had not begun warn. The failure
    itself is raised as it is.
    """
    before = sys.unraisablehook

    def report(unraisable: Any) -> None:
        if not any(words in str(unraisable.exc_value) for words in _STRAY_WORDS):
            before(unraisable)

    sys.unraisablehook = report
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=_STRAY_WARNING, category=RuntimeWarning)
            try:
                yield
            except Exception as error:
                time.sleep(_STRAY_SECONDS)
                # Reads that were given up end, and report, when they are collected: here, and not
                # when the failure is, whose frames hold them.
                traceback.clear_frames(error.__traceback__)
                gc.collect()
                raise
    finally:
        sys.unraisablehook = before


def _to_stored(state: PyTree) -> dict[str, Any]:
    """Returns the leaves that Orbax can hold, as nested dicts: keys as data, nothing empty."""
    leaves = {}
    for path, leaf in named_leaves(state).items():
        data = jnp.asarray(leaf)
        if jnp.issubdtype(data.dtype, jax.dtypes.prng_key):
            data = jax.random.key_data(data)
        if data.size:
            leaves[path] = data
    return _nested(leaves)


def _abstract_data(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns shape, dtype and sharding of a leaf's data (of the words of a key)."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _nested(named: dict[str, Any]) -> dict[str, Any]:
    """Splits paths at "/" into nested dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in named.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def agreed(read: Callable[[], _T]) -> _T:
    """Runs `read` on every process; if it fails on any, all see the step as damaged.

    Orbax reports damage by many exception types, the bare `Exception` among them, hence the broad
    handler.
    """
    result, problem = None, ""
    try:
        result = read()
    except DamagedError as error:
        problem = str(error)
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.asarray(bool(problem)))
        if failed.any() and not problem:
            problem = f"process {int(np.argmax(failed))} could not read it"
    if problem:
        raise DamagedError(problem)
    return cast(_T, result)


def _digest(meta: dict[str, Any]) -> str:
    """Returns the sha256 of the canonical JSON text."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
