"""What a command line says of processes: flags that stand among those of the job."""

import dataclasses
from collections.abc import Sequence

from core_jax.errors import AlignaxError

CONNECT_SECONDS = 300
HEARTBEAT_SECONDS = 100


class UsageError(AlignaxError):
    """A command line that names no job, preset or flag of ours."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How this process joins its job; every field is a flag."""

    cluster: str = "auto"
    """Where processes are read from: auto, slurm, mpi, explicit; tpu in launch.tpu_pod."""
    coordinator: str = ""
    """HOST:PORT of process 0, which must be free there and open to the others."""
    num_processes: int | None = None
    """Processes of the job."""
    process_id: int | None = None
    """Number of this process, from 0."""
    local_devices: str = ""
    """Devices of this host for this process, as 0,1; by default one each where SLURM or MPI runs
    several processes on the host, else all."""
    connect_timeout: int = CONNECT_SECONDS
    """Seconds in which all processes must have come."""
    heartbeat_timeout: int = HEARTBEAT_SECONDS
    """Seconds without a sign of life after which a process counts as dead and the others end."""
    chip: str = ""
    """Generation whose XLA flags are set (v5e, h100, ...); --xla-flags lists them."""
    xla_flags: bool = False
    """Prints the table of XLA flags and ends."""
    dry_run: bool = False
    """Joins, compares, prints the plan of the job and ends without starting it."""


_LOCAL = ("chip", "xla_flags", "dry_run")
"""What a job of one process has, too."""


def take_options(arguments: Sequence[str], *, several: bool) -> tuple[Options, list[str]]:
    """Splits the flags of processes off a command line.

    Args:
      arguments: everything after the program's name.
      several: whether the program joins processes; otherwise it has the other flags alone.

    Returns:
      The options, and the rest: job, preset and the job's flags.

    Raises:
      UsageError: a flag without its value, or with one of the wrong type.

    >>> options, rest = take_options(["rec.pretrain", "--process-id", "1"], several=True)
    >>> options.process_id, rest
    (1, ['rec.pretrain'])
    """
    fields = {
        "--" + field.name.replace("_", "-"): field
        for field in dataclasses.fields(Options)
        if several or field.name in _LOCAL
    }
    found, rest, words = {}, [], iter(arguments)
    for word in words:
        flag, equals, attached = word.partition("=")
        field = fields.get(flag)
        if field is None:
            rest.append(word)
        elif field.type is bool or field.type == "bool":
            found[field.name] = True
        else:
            value = attached if equals else next(words, "")
            if not value or value.startswith("--"):
                raise UsageError(f"{flag} needs a value")
            found[field.name] = value if field.type is str else _whole_number(flag, value)
    return Options(**found), rest


def options_help(*, several: bool) -> str:
    """The flags and what they say, one a line."""
    lines = []
    for field, text in zip(dataclasses.fields(Options), _HELP, strict=True):
        if several or field.name in _LOCAL:
            lines.append(f"  --{field.name.replace('_', '-'):<18} {text}")
    return "\n".join(lines)


_HELP = (
    "where processes are read from: auto, slurm, mpi, explicit, tpu",
    "HOST:PORT of process 0",
    "processes of the job",
    "number of this process, from 0",
    "devices of this host for this process, as 0,1",
    f"seconds in which all processes must have come ({CONNECT_SECONDS})",
    f"seconds without a sign of life until a process counts as dead ({HEARTBEAT_SECONDS})",
    "generation whose XLA flags are set; --xla-flags lists them",
    "prints the table of XLA flags",
    "joins, compares, prints the plan and ends without starting the job",
)


def _whole_number(flag: str, value: str) -> int:
    """A number of a flag."""
    if not value.isdigit():
        raise UsageError(f"{flag} is '{value}'; it must be a whole number, 0 or more")
    return int(value)
