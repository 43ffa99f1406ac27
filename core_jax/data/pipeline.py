"""The training input: shuffled batches of records with a position that can be saved and restored.

The order of the records depends on the seed and the position alone: not on the number of hosts,
not on earlier calls. Each record of the Grain dataset is a whole batch, gathered by one
permutation per epoch: record by record, Grain's own overhead (about 60 microseconds for each of
shuffle, map and batch together) is several times the work of reading the rows.

Dimension key:
  B: batch on this host
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast, runtime_checkable

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from numpy.random.bit_generator import ISeedSequence

from core_jax.arrays import PyTree
from core_jax.errors import ConfigError, DataError
from core_jax.mesh import BATCH_AXES, batch_sharding

Record = Mapping[str, Any]
"""One record, or a batch of records stacked: arrays by name."""

RandomMap = Callable[[Record, np.random.Generator], Record]
"""Changes one record at random; the generator depends on seed and place in the order alone."""

_ORDER_STREAM, _MAP_STREAM = 0, 1


@runtime_checkable
class Source(Protocol):
    """Records by index."""

    def __len__(self) -> int:
        """Returns the number of records."""
        ...

    def __getitem__(self, index: int, /) -> Record:
        """Returns one record; equal names, shapes and dtypes in every record."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """The parts of every batch that a process feeds; see `host_share`."""

    parts: tuple[int, ...] = (0,)
    """Numbers of its parts, ascending."""
    num_parts: int = 1
    """Equal parts of a batch."""

    def places(self, num_rows: int) -> np.ndarray:
        """Returns the rows of a batch of `num_rows` that are this share, in order.

        >>> Share(parts=(0, 2), num_parts=4).places(8).tolist()
        [0, 1, 4, 5]
        """
        return np.concatenate(
            [
                np.arange(
                    part * num_rows // self.num_parts, (part + 1) * num_rows // self.num_parts
                )
                for part in self.parts
            ]
        )


class Pipeline(Iterator[PyTree]):
    """Iterates over the batches of one host; made by `make_pipeline`."""

    def __init__(self, batches: grain.MapDataset, *, order: dict[str, Any], prefetch: int):
        options = grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)
        self._iterator = iter(batches.to_iter_dataset(options))
        self._order = order

    def __next__(self) -> PyTree:
        return next(self._iterator)

    def get_position(self) -> dict[str, Any]:
        """Returns where the iteration stands: JSON-able, the same on every host."""
        return {"order": self._order, "grain": self._iterator.get_state()}

    def set_position(self, position: dict[str, Any]) -> None:
        """Goes on from a position that `get_position` returned.

        Raises:
          DataError: the position is of another order (source, batch size, seed, shuffling).
        """
        if position["order"] != self._order:
            differences = [
                f"{name} {position['order'].get(name)} -> {value}"
                for name, value in self._order.items()
                if position["order"].get(name) != value
            ]
            raise DataError(
                "The saved position is of another order of the data: "
                f"{', '.join(differences)}. Use the values it was saved with, or start afresh."
            )
        self._iterator.set_state(position["grain"])


def make_pipeline(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    transform: Callable[[Record], PyTree] | None = None,
    random_map: RandomMap | None = None,
    num_epochs: int | None = None,
    shuffle: bool = True,
    drop_remainder: bool = True,
    share: Share = Share(),
    prefetch: int = 2,
) -> Pipeline:
    """Builds the input pipeline of one host.

    Each host gets its rows of every global batch, so that the hosts' batches, put in their
    places, are the batch that one host alone would get.

    Args:
      source: records by index.
      batch_size: rows of the global batch, over all hosts.
      seed: seed of the order and of `random_map`.
      transform: turns the stacked records (leading dimension B) into the batch that is yielded.
      random_map: changes each record before stacking.
      num_epochs: passes over the source; None for no end. Batches run across the end of an epoch.
      shuffle: whether each epoch has its own random order, or all that of the source.
      drop_remainder: whether a last, smaller batch is left out.
      share: this host's part of each batch, from `host_share`; all of it by default.
      prefetch: batches prepared ahead by a background thread; 0 for none. The position is that
        of the batches taken, whatever has been prepared.

    Returns:
      An iterator of batches on the host, as NumPy arrays.

    Raises:
      ConfigError: batch_size does not split over the hosts.
      DataError: the source is empty or has fewer records than a batch.
    """
    count = share.num_parts
    if batch_size < 1 or batch_size % count:
        raise ConfigError(
            f"batch_size {batch_size} is not a positive multiple of the {count} parts of a batch "
            f"that the hosts share; set it to a multiple of {count}."
        )
    num_records = len(source)
    total = sys.maxsize if num_epochs is None else num_records * num_epochs
    remainder = 0 if drop_remainder else total % batch_size
    if not num_records or total < batch_size - remainder:
        raise DataError(
            f"The source has {num_records} records, fewer than the batch size {batch_size}; "
            "provide more data or set a smaller batch size."
        )
    if remainder % count:
        raise ConfigError(
            f"The last batch has {remainder} rows, which do not split into the {count} parts that "
            "the hosts share; set drop_remainder, or pad the source."
        )
    rows = _Rows(num_records, seed=seed, shuffle=shuffle)
    gathered = _Batches(
        source,
        rows,
        random_map=random_map,
        batch_size=batch_size,
        total=total - (total % batch_size if drop_remainder else 0),
        share=share,
    )
    batches = grain.MapDataset.source(cast(Any, gathered))
    if transform is not None:
        batches = batches.map(transform)
    order = {
        "num_records": num_records,
        "batch_size": batch_size,
        "seed": seed,
        "shuffle": shuffle,
        "num_epochs": num_epochs,
    }
    return Pipeline(batches, order=order, prefetch=prefetch)


def to_device(batch: PyTree, mesh: Mesh) -> PyTree:
    """Places one host's rows as its part of a global batch.

    Args:
      batch: pytree of arrays [B, ...] on the host, the rows of `host_share(mesh)`.
      mesh: device mesh; the leading dimension is split over its batch axes.

    Returns:
      The global batch: arrays [B * number of hosts' parts, ...].

    Raises:
      ConfigError: the rows do not split over the devices.
    """
    sharding, share = batch_sharding(mesh), host_share(mesh)

    def place(local: np.ndarray) -> jax.Array:
        shape = (local.shape[0] * share.num_parts // len(share.parts), *local.shape[1:])
        _check_rows(shape[0], mesh)
        if len(share.parts) == 1:
            return jax.make_array_from_process_local_data(sharding, local, shape)
        at = {int(row): index for index, row in enumerate(share.places(shape[0]))}

        def read(index: Any) -> np.ndarray:
            first, stop, _ = index[0].indices(shape[0])
            return local[at[first] : at[first] + stop - first]

        return jax.make_array_from_callback(shape, sharding, read)

    return jax.tree.map(place, batch)


def whole_to_device(batch: PyTree, mesh: Mesh) -> PyTree:
    """Places a batch that every process has whole: each device gets its rows.

    Args:
      batch: pytree of arrays [B, ...] on the host, the same in every process.
      mesh: device mesh; the leading dimension is split over its batch axes.

    Returns:
      The global batch: arrays [B, ...].

    Raises:
      ConfigError: the rows do not split over the devices.
    """
    sharding = batch_sharding(mesh)

    def place(whole: np.ndarray) -> jax.Array:
        _check_rows(whole.shape[0], mesh)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place, batch)


def _check_rows(num_rows: int, mesh: Mesh) -> None:
    """Raises unless a batch splits over the devices."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if num_rows % shards:
        raise ConfigError(
            f"A batch of {num_rows} rows does not split over {shards} devices; set the batch "
            f"size to a multiple of {shards}."
        )


def host_share(mesh: Mesh) -> Share:
    """Returns which rows of each global batch this process feeds.

    Processes that differ only along mesh axes that do not split the batch feed the same rows. On
    a torus the devices of a host need not be neighbours along the batch: its rows then are
    several parts of the batch.

    Args:
      mesh: device mesh.

    Raises:
      ConfigError: this process has no device of the mesh.
    """
    return share_of(mesh, jax.process_index())


@functools.lru_cache
def share_of(mesh: Mesh, process: int) -> Share:
    """Returns `host_share` of any process."""
    devices = np.moveaxis(
        mesh.devices, [mesh.axis_names.index(axis) for axis in BATCH_AXES], range(len(BATCH_AXES))
    )
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    owners = devices.reshape(shards, -1)
    mine = [
        shard
        for shard in range(shards)
        if any(device.process_index == process for device in owners[shard])
    ]
    if not mine:
        raise ConfigError(
            f"process {process} has none of the mesh's {mesh.size} devices; let the mesh have all "
            "devices of the job (one axis -1), or start fewer processes"
        )
    neighbours = mine == list(range(mine[0], mine[0] + len(mine)))
    if neighbours and not (mine[0] % len(mine) or shards % len(mine)):
        return Share(parts=(mine[0] // len(mine),), num_parts=shards // len(mine))
    return Share(parts=tuple(mine), num_parts=shards)


class _Rows:
    """Which record is at each place of the endless order of epochs."""

    def __init__(self, num_records: int, *, seed: int, shuffle: bool):
        self._num_records = num_records
        self._seed = seed
        self._shuffle = shuffle
        self._epoch_order = functools.lru_cache(maxsize=2)(self._make_epoch_order)

    @property
    def seed(self) -> int:
        """The seed of the order."""
        return self._seed

    def at(self, places: np.ndarray) -> np.ndarray:
        """Returns the record index at each place, int64."""
        epochs, offsets = np.divmod(places, self._num_records)
        if not self._shuffle:
            return offsets
        rows = np.empty_like(places)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            inside = epochs == epoch
            rows[inside] = self._epoch_order(epoch)[offsets[inside]]
        return rows

    def _make_epoch_order(self, epoch: int) -> np.ndarray:
        """Sorts by raw random words: unlike `permutation`, the same in every NumPy release."""
        entropy = np.random.SeedSequence((_ORDER_STREAM, self._seed, epoch))
        words = np.random.Philox(entropy).random_raw(self._num_records)
        return np.argsort(words, kind="stable")


class _Batches:
    """One host's share of each global batch, by the number of the batch: a source for Grain."""

    def __init__(
        self,
        source: Source,
        rows: _Rows,
        *,
        random_map: RandomMap | None,
        batch_size: int,
        total: int,
        share: Share,
    ):
        self._source = source
        self._rows = rows
        self._random_map = random_map
        self._batch_size = batch_size
        self._total = total
        self._share = share

    def __len__(self) -> int:
        return -(-self._total // self._batch_size)

    def __getitem__(self, number: int) -> Record:
        start = number * self._batch_size
        rows = min(self._batch_size, self._total - start)
        places_B = start + self._share.places(rows)
        records = [self._source[int(row)] for row in self._rows.at(places_B)]
        if self._random_map is not None:
            generators = _generators(self._rows.seed, places_B)
            records = [
                self._random_map(record, generator)
                for record, generator in zip(records, generators, strict=True)
            ]
        return {name: np.stack([record[name] for record in records]) for name in records[0]}


class _Words(ISeedSequence):
    """A seed sequence whose words are given: ten times cheaper than hashing them one by one."""

    def __init__(self, words: np.ndarray):
        self._words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> np.ndarray:
        assert (n_words, dtype) == (len(self._words), np.uint64)
        return self._words


def _generators(seed: int, places_B: np.ndarray) -> Iterator[np.random.Generator]:
    """Yields one generator for each place, independent of the others (SplitMix64 words)."""
    salt = np.random.SeedSequence((_MAP_STREAM, seed)).generate_state(1, np.uint64)
    words = salt + (places_B.astype(np.uint64)[:, None] * 4 + np.arange(1, 5, dtype=np.uint64)) * (
        np.uint64(0x9E3779B97F4A7C15)
    )
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words = (words ^ (words >> np.uint64(shift))) * np.uint64(factor)
    words ^= words >> np.uint64(31)
    for row in words:
        yield np.random.Generator(np.random.PCG64(cast(Any, _Words(row))))
