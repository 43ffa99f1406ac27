"""Collectives and kernels of a compiled program: how many, how many bytes, along which axes.

Bytes are what one device sends in a step, by the ring algorithms: of n devices, an all-gather, a
reduce-scatter or an all-to-all sends (n - 1) / n of the whole array, an all-reduce twice that, a
permutation the array once.

Dimension key: none.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from launch.aot.hlo import Instruction, Module

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
"""Collectives by the name of their instruction."""

_LISTED = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{} ]*\})\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """What one kind of collective does along one set of mesh axes in a step.

    Attributes:
      kind: one of `KINDS`.
      axes: names of the mesh axes, joined by "+"; "all" where the devices are no such group.
      count: runs per step.
      sent_bytes: bytes that one device sends per step.
    """

    kind: str
    axes: str
    count: float
    sent_bytes: float


def collectives(module: Module, mesh_shape: Mapping[str, int]) -> tuple[Collective, ...]:
    """Every collective of a program, the largest first.

    Args:
      module: the program, of one of the devices.
      mesh_shape: size of every axis of the mesh, outermost first.
    """
    found: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    channels: set[str] = set()
    for name, instructions in module.computations.items():
        for one in instructions:
            kind = one.operation.removesuffix("-start")
            if kind not in KINDS or not module.runs[name]:
                continue
            channel = _CHANNEL.search(one.text)
            # A collective that is fused with its neighbours is written once in each part.
            if channel and channel[1] in channels:
                continue
            channels |= {channel[1]} if channel else set()
            group = _group(one, math.prod(mesh_shape.values()))
            entry = found[kind, _axes(group, mesh_shape)]
            entry[0] += module.runs[name]
            entry[1] += module.runs[name] * _sent(one, kind, max(2, len(group)))
    listed = [
        Collective(kind=kind, axes=axes, count=count, sent_bytes=sent)
        for (kind, axes), (count, sent) in found.items()
    ]
    return tuple(sorted(listed, key=lambda one: -one.sent_bytes))


def kernels(module: Module) -> dict[str, float]:
    """Runs per step of every hand-written kernel by name, those of layout and memory left out."""
    found: dict[str, float] = defaultdict(float)
    for name, instructions in module.computations.items():
        for one in instructions:
            target = one.attribute("custom_call_target")
            if one.operation == "custom-call" and _is_kernel(target):
                found[_kernel_name(one, target)] += module.runs[name]
    ranked = sorted(found.items(), key=lambda entry: -entry[1])
    return {name: count for name, count in ranked if count}


def _is_kernel(target: str) -> bool:
    """Whether a custom call computes something."""
    return target == "tpu_custom_call" or target.startswith(("__cu", "triton", "__triton"))


def _kernel_name(one: Instruction, target: str) -> str:
    """What a kernel is called: by its instruction, or by the place in the program."""
    own = re.sub(r"[.\d]+$", "", one.name)
    if target != "tpu_custom_call":
        return target
    path = _OP_NAME.search(one.text)
    last = path[1].split("/")[-1] if path else own
    return own if own not in ("custom-call", "tpu_custom_call", "closed_call") else last


def _sent(one: Instruction, kind: str, size: int) -> float:
    """Bytes that one device sends."""
    arrays = [array.bytes for array in one.result]
    is_start = one.operation.endswith("-start")
    share = (size - 1) / size
    if kind == "all-reduce":
        return 2 * share * sum(arrays)
    if kind == "collective-permute":
        return float(arrays[0] if is_start else sum(arrays))
    if kind == "reduce-scatter":
        return share * size * (min(arrays) if is_start else sum(arrays))
    if kind == "all-gather" and is_start:
        return share * sum(arrays) * size / (size + 1)  # operands and results
    return share * sum(arrays)


def _group(one: Instruction, num_devices: int) -> tuple[int, ...]:
    """Devices that take part with the first one, by their number in the mesh."""
    pairs = _PAIRS.search(one.text)
    if pairs:
        return _reached(pairs[1])
    iota = _IOTA.search(one.text)
    if iota:
        shape, dims = ([int(size) for size in iota[part].split(",")] for part in (1, 2))
        numbers = np.arange(math.prod(dims)).reshape(dims)
        if iota[3]:
            numbers = numbers.transpose([int(place) for place in iota[3].split(",")])
        return tuple(numbers.reshape(shape)[0].tolist())
    listed = _LISTED.search(one.text)
    if listed:
        first = listed[1].split("}")[0].strip("{")
        if first:
            return tuple(int(number) for number in first.split(","))
    return tuple(range(num_devices))


def _reached(pairs: str) -> tuple[int, ...]:
    """Devices that the first pair's source reaches, step by step."""
    numbers = [int(number) for number in re.findall(r"\d+", pairs)]
    to = dict(zip(numbers[::2], numbers[1::2], strict=True))
    seen = [numbers[0]]
    while to.get(seen[-1], seen[0]) not in seen:
        seen.append(to[seen[-1]])
    return tuple(seen)


def _axes(group: Sequence[int], mesh_shape: Mapping[str, int]) -> str:
    """The axes along which the devices of a group differ."""
    places = np.array(np.unravel_index(np.array(group), tuple(mesh_shape.values())))
    differ = [
        name
        for name, numbers in zip(mesh_shape, places, strict=True)
        if len(set(numbers.tolist())) > 1
    ]
    return "+".join(differ) or "all"
