"""Many rows through a compiled call: batches of one shape, the next on its way while one is read.

Dimension key: none.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from core_jax.mesh import BATCH_AXES


def num_batch_shards(mesh: Mesh | None) -> int:
    """Over how many parts a batch is split."""
    return 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def batch_rows(num_rows: int, batch_size: int, mesh: Mesh | None) -> int:
    """Rows per call: the wanted number, or as few as hold all rows on every shard."""
    shards = num_batch_shards(mesh)
    return min(batch_size, max(1, -(-num_rows // shards)) * shards)


def run_batches(
    dispatch: Callable[[int], Any],
    num_rows: int,
    batch_size: int,
    *,
    name: str,
    progress: bool,
) -> list[Any]:
    """Calls `dispatch` with the first row of every batch and brings the results to the host.

    Args:
      dispatch: starts the work of one batch and returns without waiting for it.
      num_rows: rows of all batches.
      batch_size: rows per batch.
      name: what the progress bar says.
      progress: whether to show one.

    Returns:
      The result of each batch, as NumPy arrays, in order.
    """
    done, pending = [], None
    with tqdm(total=num_rows, desc=name, unit="user", disable=not progress) as bar:
        for first in range(0, num_rows, batch_size):
            upcoming = dispatch(first)
            if pending is not None:
                done.append(jax.device_get(pending))
                bar.update(batch_size)
            pending = upcoming
        if pending is not None:
            done.append(jax.device_get(pending))
            bar.update(num_rows - bar.n)
    return done
