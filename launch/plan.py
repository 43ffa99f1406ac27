"""The plan of a job, for `--dry-run`: who computes what, where, from which code, config and data.

Dimension key: none.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from core_jax.config import to_dict
from core_jax.data.pipeline import share_of
from core_jax.mesh import AXES, MeshConfig, make_mesh, slices_of
from launch.agreement import summary
from launch.places import Place

_MOST_PROCESSES = 16


def plan_text(name: str, config: Any, place: Place, facts: Mapping[str, str]) -> str:
    """Says what would run.

    Args:
      name: the job's name.
      config: its config.
      place: how this process knows of the others.
      facts: from `launch.agreement.facts_of`.

    Returns:
      A text of several lines.

    Raises:
      ConfigError: the config's mesh does not fit the devices, or a batch does not split.
    """
    devices = jax.devices()
    rows = [
        ("job", name),
        ("run folder", config.run_dir),
        ("processes", f"{jax.process_count()}, from {place.source}"),
    ]
    if place.coordinator:
        rows.append(("coordinator", place.coordinator))
    per_slice = slices_of(devices)
    in_slices = f" in {len(per_slice)} slices" if len(per_slice) > 1 else ""
    rows.append(("devices", f"{len(devices)} x {devices[0].device_kind}{in_slices}"))
    meshes = {field: make_mesh(found) for field, found in configs_in(config, MeshConfig).items()}
    batches = _batches(to_dict(config))
    for field, mesh in meshes.items():
        rows.append((field, " x ".join(f"{axis} {mesh.shape[axis]}" for axis in AXES)))
    rows += [(f"fingerprint {item}", value) for item, value in summary(facts).items()]
    width = max(len(row[0]) for row in rows)
    lines = [f"{title:<{width}}  {value}" for title, value in rows]
    return "\n".join([*lines, "", *_shares(next(iter(meshes.values()), None), batches, devices)])


def _batches(data: Any, prefix: str = "") -> dict[str, int]:
    """Batch sizes of training, by dotted name: what stands beside a number of microbatches."""
    if not isinstance(data, dict):
        return {}
    found = {}
    if "batch_size" in data and "num_microbatches" in data:
        found[f"{prefix}batch_size"] = data["batch_size"]
    for name, value in data.items():
        found |= _batches(value, f"{prefix}{name}.")
    return found


def _shares(mesh: Mesh | None, batches: Mapping[str, int], devices: Sequence[Any]) -> list[str]:
    """A line per process: its devices, and its rows of each training batch."""
    own: dict[int, list[int]] = {}
    for device in devices:
        own.setdefault(device.process_index, []).append(device.id)
    lines = []
    for process, ids in sorted(own.items())[:_MOST_PROCESSES]:
        parts = [f"process {process}: {len(ids)} devices {_range(ids)}"]
        for field, size in batches.items() if mesh is not None else ():
            assert mesh is not None
            share = share_of(mesh, process)
            if size % share.num_parts:
                parts.append(f"{field} {size} does not split into {share.num_parts} parts")
                continue
            places = share.places(size).tolist()
            parts.append(f"{field} {size}: {len(places)} rows {_range(places)}")
        lines.append("; ".join(parts))
    if len(own) > _MOST_PROCESSES:
        lines.append(f"and {len(own) - _MOST_PROCESSES} more processes")
    return lines


def _range(numbers: Sequence[int]) -> str:
    """Numbers as runs, as 0-3,8-11."""
    ordered, runs = sorted(numbers), []
    for number in ordered:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [f"{first}-{last}" if last > first else f"{first}" for first, last in runs[:6]]
    return ",".join(texts) + ("..." if len(runs) > len(texts) else "")


def configs_in(config: Any, kind: type) -> dict[str, Any]:
    """The configs of a type within a config, by dotted name.

    Args:
      config: a dataclass.
      kind: a dataclass type.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, kind):
            found[field.name] = value
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            inner = configs_in(value, kind)
            found |= {f"{field.name}.{name}": one for name, one in inner.items()}
    return found
