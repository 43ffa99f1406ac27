"""The chips that programs can be compiled for: what their makers state.

TPUs: the tables "System architecture" of docs.cloud.google.com/tpu/docs (pages v4, v5e, v5p, v6e,
tpu7x). GPUs: NVIDIA's data sheets of A10, A100 and H100 (SXM). Peaks are of dense bfloat16, in
`core_jax.profiling` but for tpu7x, whose device is half a chip. Interchip bandwidth is one way over
one link, which is the stated bidirectional bandwidth of a chip over twice its links. v5e and v6e
lay a 2-dimensional torus, v4, v5p and tpu7x one of 3 dimensions; a dimension that is not a whole
torus has no wrap-around link, and half the bandwidth.

Dimension key: none.
"""

import dataclasses

from core_jax.errors import ConfigError, nearest_name
from core_jax.profiling import PEAK_FLOPS

_GIB = 1 << 30
_GB = 10**9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device as JAX lists it (of v4, v5p and tpu7x see `devices`).

    Attributes:
      name: family, as in a topology's name ("v5e").
      peak_flops: dense bfloat16 FLOP/s of a device.
      hbm_bytes: memory of a device.
      usable_bytes: what the compiler or the runtime leaves to programs.
      hbm_bandwidth: bytes per second of a device.
      link_bandwidth: bytes per second of one link, one way.
      torus_dims: dimensions of the torus that a slice lays; 0: a switch joins all.
      wrap_from: devices of a dimension from which on its ends are joined.
      slices: names of slices, the smallest first.
      options: further arguments for the description of a topology.
    """

    name: str
    peak_flops: float
    hbm_bytes: int
    usable_bytes: int
    hbm_bandwidth: float
    link_bandwidth: float
    torus_dims: int
    wrap_from: int
    slices: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return not self.torus_dims


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

CHIPS = {
    "v4": Chip(
        name="v4",
        peak_flops=PEAK_FLOPS["TPU v4"],
        hbm_bytes=32 * _GIB,
        usable_bytes=int(31.75 * _GIB),
        hbm_bandwidth=1228 * _GB,
        link_bandwidth=50 * _GB,
        torus_dims=3,
        wrap_from=4,
        slices=_CUBES[1:],
        options=(("chip_config_name", "megacore"),),
    ),
    "v5e": Chip(
        name="v5e",
        peak_flops=PEAK_FLOPS["TPU v5e"],
        hbm_bytes=16 * _GIB,
        usable_bytes=int(15.75 * _GIB),
        hbm_bandwidth=819 * _GB,
        link_bandwidth=50 * _GB,
        torus_dims=2,
        wrap_from=16,
        slices=_FLAT,
    ),
    "v5p": Chip(
        name="v5p",
        peak_flops=PEAK_FLOPS["TPU v5p"],
        hbm_bytes=95 * _GIB,
        usable_bytes=int(94.75 * _GIB),
        hbm_bandwidth=2765 * _GB,
        link_bandwidth=100 * _GB,
        torus_dims=3,
        wrap_from=4,
        slices=_CUBES[1:],
    ),
    "v6e": Chip(
        name="v6e",
        peak_flops=PEAK_FLOPS["TPU v6e"],
        hbm_bytes=32 * _GIB,
        usable_bytes=int(31.25 * _GIB),
        hbm_bandwidth=1638 * _GB,
        link_bandwidth=100 * _GB,
        torus_dims=2,
        wrap_from=16,
        slices=_FLAT,
    ),
    "tpu7x": Chip(
        name="tpu7x",
        peak_flops=2307e12 / 2,
        hbm_bytes=96 * _GIB,
        usable_bytes=int(94.75 * _GIB),
        hbm_bandwidth=7380 * _GB / 2,
        link_bandwidth=100 * _GB,
        torus_dims=3,
        wrap_from=4,
        slices=_CUBES[1:],
    ),
    "a10": Chip(
        name="a10",
        peak_flops=PEAK_FLOPS["NVIDIA A10"],
        hbm_bytes=24 * _GB,
        usable_bytes=int(0.92 * 24 * _GB),
        hbm_bandwidth=600 * _GB,
        link_bandwidth=32 * _GB,
        torus_dims=0,
        wrap_from=0,
        slices=("1", "2", "4", "8"),
    ),
    "a100": Chip(
        name="a100",
        peak_flops=PEAK_FLOPS["NVIDIA A100"],
        hbm_bytes=80 * _GB,
        usable_bytes=int(0.92 * 80 * _GB),
        hbm_bandwidth=2039 * _GB,
        link_bandwidth=300 * _GB,
        torus_dims=0,
        wrap_from=0,
        slices=("1", "2", "4", "8", "16", "32", "64"),
    ),
    "h100": Chip(
        name="h100",
        peak_flops=PEAK_FLOPS["NVIDIA H100"],
        hbm_bytes=80 * _GB,
        usable_bytes=int(0.92 * 80 * _GB),
        hbm_bandwidth=3350 * _GB,
        link_bandwidth=450 * _GB,
        torus_dims=0,
        wrap_from=0,
        slices=("1", "2", "4", "8", "16", "32", "64", "128", "256"),
    ),
}
"""Chips by family."""


def chip_of(family: str) -> Chip:
    """The chip of a topology's family.

    Raises:
      ConfigError: there is none of that name.
    """
    if family not in CHIPS:
        raise ConfigError(f"no chip '{family}'. {nearest_name(family, CHIPS)}")
    return CHIPS[family]
