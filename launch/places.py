"""Which process of which job this one is: from flags, SLURM, MPI, or what a TPU host knows.

Dimension key: none.
"""

import dataclasses
import os
import re
import zlib
from collections.abc import Mapping

from core_jax.errors import ConfigError
from launch.options import Options, UsageError
from launch.tpu_metadata import metadata, tpu_environment

_FIRST_PORT, _NUM_PORTS = 61440, 4096
"""Ports that jobs are spread over, as JAX spreads them."""
_TPU_PORT = "8482"
"""Port that JAX uses on TPU hosts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A process' place in its job."""

    coordinator: str = ""
    """HOST:PORT of process 0."""
    num_processes: int = 1
    """Processes of the job."""
    process_id: int = 0
    """Number of this one."""
    local_devices: tuple[int, ...] | None = None
    """Devices of the host that it uses; None for all."""
    source: str = "this process alone"
    """Where this is known from."""


def alone(options: Options) -> Place:
    """The only process of a job."""
    del options
    return Place()


def on_gpus(options: Options, environment: Mapping[str, str] = os.environ) -> Place:
    """A process of a GPU cluster: by flags, SLURM or MPI.

    Args:
      options: flags.
      environment: environment variables.

    Raises:
      ConfigError: nothing says which process this is, or only half of it.
      UsageError: an unknown cluster.
    """
    finders = {"slurm": _slurm, "mpi": _mpi, "explicit": _explicit}
    if options.cluster not in (*finders, "auto"):
        raise UsageError(f"--cluster is '{options.cluster}'; it must be auto, {', '.join(finders)}")
    if options.cluster != "auto":
        place = finders[options.cluster](options, environment)
        if place is None:
            raise ConfigError(_NOTHING[options.cluster])
        return place
    for find in (_explicit, _slurm, _mpi):
        place = find(options, environment)
        if place is not None:
            return place
    raise ConfigError(
        "nothing says which process of which job this is: no --coordinator, --num-processes and "
        "--process-id, no SLURM task (SLURM_PROCID), no MPI rank (OMPI_COMM_WORLD_RANK, PMI_RANK); "
        "start it with srun or mpirun, give the three flags, or use launch.local for one process"
    )


def on_tpus(options: Options, environment: Mapping[str, str] = os.environ) -> Place:
    """A process of TPU slices: by flags, GKE's and MegaScale's variables, or the TPU's metadata.

    Args:
      options: flags.
      environment: environment variables.

    Raises:
      ConfigError: nothing says which process this is, or only half of it.
      UsageError: an unknown cluster.
    """
    if options.cluster not in ("auto", "tpu", "explicit"):
        raise UsageError(f"--cluster is '{options.cluster}'; it must be auto, tpu, explicit")
    if options.cluster != "tpu":
        place = _explicit(options, environment)
        if place is not None:
            return place
        if options.cluster == "explicit":
            raise ConfigError(_NOTHING["explicit"])
    values = tpu_environment(environment)
    if values is None:
        values = metadata(environment)
    if values is None:
        raise ConfigError(
            "this host is no TPU worker: neither TPU_WORKER_ID and TPU_WORKER_HOSTNAMES (GKE) are "
            "set nor does a metadata server name TPU workers; run this on every host of a slice, "
            "give --coordinator, --num-processes and --process-id, or use launch.local"
        )
    workers, worker = values.workers, values.worker
    port = environment.get("JAX_COORDINATOR_PORT", _TPU_PORT)
    host = values.megascale_coordinator.split(":")[0] or workers[0].split(":")[0]
    return Place(
        coordinator=options.coordinator or f"{host}:{port}",
        num_processes=len(workers) * values.num_slices,
        process_id=worker + values.slice_id * len(workers),
        local_devices=_device_ids(options),
        source=values.source,
    )


_NOTHING = {
    "slurm": "--cluster slurm, but there is no task (SLURM_PROCID is not set); start with srun",
    "mpi": "--cluster mpi, but no rank (OMPI_COMM_WORLD_RANK, PMI_RANK); start with mpirun",
    "explicit": "--cluster explicit needs --coordinator, --num-processes and --process-id",
}


def _explicit(options: Options, environment: Mapping[str, str]) -> Place | None:
    """What flags (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID) say."""
    coordinator = options.coordinator or environment.get("JAX_COORDINATOR_ADDRESS", "")
    count = _number(options.num_processes, environment, "JAX_NUM_PROCESSES")
    number = _number(options.process_id, environment, "JAX_PROCESS_ID")
    given = {"--coordinator": coordinator, "--num-processes": count, "--process-id": number}
    missing = [flag for flag, value in given.items() if value in ("", None)]
    if len(missing) == 3 or (
        missing == ["--num-processes", "--process-id"] and _ranks(environment) is not None
    ):
        return None  # a coordinator alone helps an MPI that does not know one
    if missing or count is None or number is None:
        present = [flag for flag in given if flag not in missing]
        raise ConfigError(
            f"{', '.join(present)} given, but not {' and '.join(missing)}; give all three, the "
            "same --coordinator and --num-processes to every process, and to each its --process-id"
        )
    if count < 1 or number >= count:
        raise ConfigError(
            f"--process-id is {number} and --num-processes {count}; numbers go from 0 to "
            "--num-processes - 1"
        )
    return Place(
        coordinator=coordinator,
        num_processes=count,
        process_id=number,
        local_devices=_device_ids(options),
        source="flags",
    )


def _slurm(options: Options, environment: Mapping[str, str]) -> Place | None:
    """What srun tells each of its tasks."""
    names = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if nodes is None or any(name not in environment for name in names):
        return None
    job, count, number, local = (int(environment[name]) for name in names)
    port = environment.get("JAX_COORDINATOR_PORT", str(_FIRST_PORT + job % _NUM_PORTS))
    local_size = _tasks_here(environment, count)
    return Place(
        coordinator=options.coordinator or f"{first_node(nodes)}:{port}",
        num_processes=count,
        process_id=number,
        local_devices=_own_device(options, environment, local, local_size),
        source=f"SLURM job {job}",
    )


def first_node(nodes: str) -> str:
    """The first host of a SLURM node list.

    >>> first_node("node[007-011,020],login")
    'node007'
    """
    match = re.match(r"([^,\[]+)(?:\[([^,\-\]]+))?", nodes)
    return "".join(part for part in match.groups() if part) if match else nodes


def _tasks_here(environment: Mapping[str, str], count: int) -> int:
    """Tasks on this node, from a list as "4(x2),3": by number of node."""
    listed = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
    if not listed:
        return count
    sizes = []
    for part in listed.split(","):
        size, _, times = part.partition("(x")
        sizes += [int(size)] * (int(times.rstrip(")")) if times else 1)
    node = int(environment.get("SLURM_NODEID", "0"))
    return sizes[node] if node < len(sizes) else sizes[-1]


def _ranks(environment: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    """Number and count of processes, of all and on this host, from an MPI's variables."""
    for names in (
        (
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ):
        if names[0] in environment and names[1] in environment:
            number, count = int(environment[names[0]]), int(environment[names[1]])
            local = int(environment.get(names[2], number))
            return number, count, local, int(environment.get(names[3], count))
    return None


def _mpi(options: Options, environment: Mapping[str, str]) -> Place | None:
    """What mpirun tells each of its ranks."""
    ranks = _ranks(environment)
    if ranks is None:
        return None
    number, count, local, local_size = ranks
    coordinator = options.coordinator or environment.get("JAX_COORDINATOR_ADDRESS", "")
    if not coordinator:
        job = environment.get("PMIX_NAMESPACE") or environment.get("OMPI_MCA_orte_hnp_uri", "mpi")
        port = _FIRST_PORT + zlib.crc32(job.split(";")[0].encode()) % _NUM_PORTS
        launcher = re.search(r"tcp://([^,:]+)", environment.get("OMPI_MCA_orte_hnp_uri", ""))
        if local_size == count:
            coordinator = f"127.0.0.1:{port}"
        elif launcher:
            coordinator = f"{launcher[1]}:{port}"
        else:
            raise ConfigError(
                f"this MPI does not say on which host rank 0 of {count} runs; give "
                "--coordinator HOST:PORT of rank 0"
            )
    return Place(
        coordinator=coordinator,
        num_processes=count,
        process_id=number,
        local_devices=_own_device(options, environment, local, local_size),
        source="MPI",
    )


def _own_device(
    options: Options, environment: Mapping[str, str], local: int, local_size: int
) -> tuple[int, ...] | None:
    """The device of one process among several on a host; all where it is alone on it.

    One that already sees a single device (SLURM binds it with --gpus-per-task) uses what it sees.
    """
    given = _device_ids(options)
    bound = environment.get("CUDA_VISIBLE_DEVICES", "")
    if given is not None or local_size == 1 or (bound and len(bound.split(",")) < local_size):
        return given
    return (local,)


def _device_ids(options: Options) -> tuple[int, ...] | None:
    """`--local-devices` as numbers."""
    if not options.local_devices:
        return None
    parts = options.local_devices.split(",")
    if not all(part.isdigit() for part in parts):
        raise ConfigError(f"--local-devices is '{options.local_devices}'; it must be as 0,1,2")
    return tuple(map(int, parts))


def _number(given: int | None, environment: Mapping[str, str], name: str) -> int | None:
    """A number from a flag, or from a variable."""
    if given is not None or name not in environment:
        return given
    if not environment[name].isdigit():
        raise ConfigError(f"{name} is '{environment[name]}'; it must be a whole number, 0 or more")
    return int(environment[name])
