"""Flags of XLA and libtpu by generation of chip: one table, each entry with its source.

Only what someone has published as better than the default, and what the pinned versions know
(libtpu 0.0.42.1 and jaxlib 0.10.2 have each of them by name; an unknown flag ends the process).
None of them was timed here: there was no such chip.
"""

import dataclasses
import os
from collections.abc import MutableMapping

from core_jax.errors import ConfigError, nearest_name

_MAXTEXT = "github.com/AI-Hypercomputer/maxtext, benchmarks/xla_flags_library.py"
_JAX_TOOLBOX = "docs.nvidia.com/jax-toolbox/environment-variables"
_TPU, _GPU = "LIBTPU_INIT_ARGS", "XLA_FLAGS"


@dataclasses.dataclass(frozen=True, kw_only=True)
class XlaFlag:
    """One flag."""

    chips: tuple[str, ...]
    """Generations that it is set for."""
    variable: str
    """Environment variable that it goes into."""
    flag: str
    """The flag with its value."""
    why: str
    """What it does."""
    source: str
    """Where it is recommended."""


FLAGS = (
    XlaFlag(
        chips=("v4", "v5e", "v5p", "v6e"),
        variable=_TPU,
        flag="--xla_tpu_enable_data_parallel_all_reduce_opt=true",
        why="gradients of slices are reduced over the data-center network while others compute",
        source=f"{_MAXTEXT}, DATA_PARALLEL_OVERLAP",
    ),
    XlaFlag(
        chips=("v4", "v5e", "v5p", "v6e"),
        variable=_TPU,
        flag="--xla_tpu_data_parallel_opt_different_sized_ops=true",
        why="the same for gradients of unequal sizes, across iterations",
        source=f"{_MAXTEXT}, DATA_PARALLEL_OVERLAP",
    ),
    XlaFlag(
        chips=("v6e",),
        variable=_TPU,
        flag="--xla_tpu_scoped_vmem_limit_kib=98304",
        why="more of the chip's vector memory for one fused operation",
        source=f"{_MAXTEXT}, DENSE_VMEM_LIMIT_FLAG",
    ),
    XlaFlag(
        chips=("a100", "h100", "h200"),
        variable=_GPU,
        flag="--xla_gpu_enable_latency_hiding_scheduler=true",
        why="collectives are moved so that more of them overlap with computation",
        source=_JAX_TOOLBOX,
    ),
)
"""The table."""


def set_flags(chip: str, environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """Adds a generation's flags to the environment, before any device is touched.

    A flag that is there already keeps its value.

    Args:
      chip: generation.
      environment: environment variables.

    Returns:
      The flags that were added.

    Raises:
      ConfigError: a generation without an entry.
    """
    known = sorted({one for entry in FLAGS for one in entry.chips})
    if chip not in known:
        raise ConfigError(
            f"--chip is '{chip}', which has no XLA flags. {nearest_name(chip, known)}"
        )
    added = []
    for entry in FLAGS:
        before = environment.get(entry.variable, "")
        if chip in entry.chips and entry.flag.partition("=")[0] not in before:
            environment[entry.variable] = f"{before} {entry.flag}".strip()
            added.append(entry.flag)
    return added


def table_text() -> str:
    """The table, for people."""
    lines = ["XLA flags by chip (--chip NAME sets them; a flag that is set already stays):"]
    for entry in FLAGS:
        lines += [
            "",
            f"{', '.join(entry.chips)}: {entry.flag}   in {entry.variable}",
            f"    {entry.why}",
            f"    {entry.source}",
        ]
    return "\n".join(lines)
