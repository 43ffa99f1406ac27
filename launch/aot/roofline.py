"""How long a step takes at best: compute, memory and interconnect, each at its limit.

With overlap, a step takes as long as the slowest of the three; one by one, as long as their sum.
Real steps lie between. Compute is at `MATMUL_SHARE` of the peak, as large matrix products
reach; memory and links at `BANDWIDTH_SHARE`. Collectives along different axes of the mesh use
different links and run at once; along one axis they follow each other.

Dimension key: none.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from launch.aot.chips import Chip
from launch.aot.collectives import Collective

MATMUL_SHARE = 0.8
"""Of the peak FLOP/s that large bfloat16 products reach."""
BANDWIDTH_SHARE = 0.85
"""Of HBM's and the links' bandwidth that is reached."""
NETWORK_BANDWIDTH = 50e9
"""Bytes per second and GPU between hosts (400 Gb/s)."""
GPUS_PER_HOST = 8

ASSUMPTIONS = (
    f"matrix products reach {MATMUL_SHARE:.0%} of the peak, memory and links "
    f"{BANDWIDTH_SHARE:.0%} of their bandwidth; collectives along one axis follow each other, "
    "along different axes they run at once; 'overlapped' is the slowest of compute, memory and "
    "links, 'one by one' their sum"
)
"""What the estimate rests on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Times of a step in seconds.

    Attributes:
      compute: of the FLOPs.
      memory: of the bytes to and from HBM.
      links: by axes of the mesh, of its collectives.
      mfu_overlapped: FLOPs that the model needs over the peak, where all run at once.
      mfu_serial: the same where they run one by one.
    """

    compute: float
    memory: float
    links: Mapping[str, float]
    mfu_overlapped: float
    mfu_serial: float

    @property
    def overlapped(self) -> float:
        """A step, everything at once."""
        return max(self.compute, self.memory, self.slowest_link)

    @property
    def serial(self) -> float:
        """A step, one by one."""
        return self.compute + self.memory + self.slowest_link

    @property
    def slowest_link(self) -> float:
        """The axes that take longest."""
        return max(self.links.values(), default=0.0)

    @property
    def bottleneck(self) -> str:
        """What takes longest."""
        parts = {"compute": self.compute, "HBM": self.memory}
        parts |= {f"links along {axes}": time for axes, time in self.links.items()}
        return max(parts, key=lambda name: parts[name])


def roofline(
    chip: Chip,
    *,
    model_flops: float,
    hardware_flops: float,
    moved_bytes: float,
    collectives: Iterable[Collective],
    mesh_shape: Mapping[str, int],
    shape: Sequence[int],
) -> Roofline:
    """Estimates a step.

    Args:
      chip: of the devices.
      model_flops: per device, that the result needs.
      hardware_flops: per device, that are done.
      moved_bytes: per device, to and from HBM.
      collectives: of a step.
      mesh_shape: size of every axis, outermost first.
      shape: devices along the dimensions of the torus.
    """
    links: dict[str, float] = defaultdict(float)
    for one in collectives:
        bandwidth = axis_bandwidth(chip, one.axes.split("+"), mesh_shape, shape)
        links[one.axes] += one.sent_bytes / (bandwidth * BANDWIDTH_SHARE)
    compute = hardware_flops / (chip.peak_flops * MATMUL_SHARE)
    memory = moved_bytes / (chip.hbm_bandwidth * BANDWIDTH_SHARE)
    slowest = max(links.values(), default=0.0)
    ideal = model_flops / chip.peak_flops
    return Roofline(
        compute=compute,
        memory=memory,
        links=dict(links),
        mfu_overlapped=ideal / max(compute, memory, slowest),
        mfu_serial=ideal / (compute + memory + slowest),
    )


def axis_bandwidth(
    chip: Chip, axes: Sequence[str], mesh_shape: Mapping[str, int], shape: Sequence[int]
) -> float:
    """Bytes per second that a device sends in a ring along axes of the mesh.

    On a torus a ring uses both directions of a link in every dimension that its devices span, and
    one where that dimension's ends are not joined. The devices of the innermost axes are taken to
    be neighbours: they fill the dimensions of the torus from the last one on.

    >>> from launch.aot.chips import CHIPS
    >>> whole = {"data": 1, "fsdp": 256, "expert": 1, "tensor": 1}
    >>> axis_bandwidth(CHIPS["v6e"], ["fsdp"], whole, (16, 16)) / 1e9
    400.0
    """
    size = math.prod(mesh_shape.get(axis, 1) for axis in axes) if axes != ["all"] else 0
    size = size or math.prod(mesh_shape.values())
    if chip.is_gpu:
        inner = math.prod(mesh_shape[axis] for axis in list(mesh_shape)[_first(axes, mesh_shape) :])
        return chip.link_bandwidth if inner <= GPUS_PER_HOST else NETWORK_BANDWIDTH
    spanned = 0.0
    left = size
    for length in sorted(shape, reverse=True):
        if left <= 1 or length == 1:
            continue
        wraps = length >= chip.wrap_from and left >= length
        spanned += 2.0 if wraps else 1.0
        left = math.ceil(left / length)
    return chip.link_bandwidth * max(1.0, spanned)


def _first(axes: Sequence[str], mesh_shape: Mapping[str, int]) -> int:
    """Place of the outermost of the axes."""
    names = list(mesh_shape)
    return min((names.index(axis) for axis in axes if axis in names), default=0)
