"""What a TPU host knows of its slice: from the environment (GKE), or from the metadata server.

Dimension key: none.
"""

import dataclasses
import urllib.error
import urllib.request
from collections.abc import Mapping

from core_jax.errors import ConfigError

_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuWorker:
    """This host among the workers of its slice, and the slice among the slices."""

    worker: int
    """Number of this host in its slice."""
    workers: tuple[str, ...]
    """Addresses of the slice's hosts, by their numbers."""
    megascale_coordinator: str = ""
    """Address of the first host of the first slice; "" where there is one slice."""
    num_slices: int = 1
    """Slices of the job."""
    slice_id: int = 0
    """Number of this slice."""
    source: str
    """Where this is known from."""


def tpu_environment(environment: Mapping[str, str]) -> TpuWorker | None:
    """What GKE tells the containers of a TPU node pool; None where it does not.

    Args:
      environment: environment variables.

    Raises:
      ConfigError: the variables contradict each other.
    """
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    number = environment.get("TPU_WORKER_ID")
    if not hosts or number is None:
        return None
    return _worker(number, hosts.split(","), environment, "the TPU variables of GKE")


def metadata(environment: Mapping[str, str]) -> TpuWorker | None:
    """What the metadata server of a TPU VM says; None where there is no such server.

    `TPU_SKIP_MDS_QUERY`, which JAX sets on hosts without a TPU, forbids to ask it.

    Args:
      environment: environment variables.

    Raises:
      ConfigError: the server's values contradict each other.
    """
    if "TPU_SKIP_MDS_QUERY" in environment:
        return None
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")
    number = _attribute(server, "agent-worker-number")
    endpoints = _attribute(server, "worker-network-endpoints")
    if number is None or endpoints is None:
        return None
    # Either HOST,HOST,... or NAME:ID:IP,NAME:ID:IP,...
    hosts = [entry.split(":")[-1] for entry in endpoints.split(",")]
    rows = (line.partition(":") for line in (_attribute(server, "tpu-env") or "").splitlines())
    told = {name.strip(): value.strip().strip("'") for name, _, value in rows}
    return _worker(number, hosts, told | dict(environment), "the TPU's metadata")


def _attribute(server: str, key: str) -> str | None:
    """One attribute of the instance; None where there is none."""
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{key}",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
            return reply.read().decode()
    except (urllib.error.URLError, OSError):
        return None


def _worker(number: str, hosts: list[str], values: Mapping[str, str], source: str) -> TpuWorker:
    """A worker from texts, MegaScale's variables among them."""
    try:
        worker = int(number)
        num_slices = int(values.get("MEGASCALE_NUM_SLICES") or 1)
        slice_id = int(values.get("MEGASCALE_SLICE_ID") or 0)
    except ValueError as error:
        raise ConfigError(f"{source} hold no number where one is expected: {error}") from error
    coordinator = values.get("MEGASCALE_COORDINATOR_ADDRESS", "")
    if not 0 <= worker < len(hosts) or not 0 <= slice_id < num_slices:
        raise ConfigError(
            f"{source} say worker {worker} of {len(hosts)} and slice {slice_id} of {num_slices}; "
            "numbers go from 0. Give --coordinator, --num-processes and --process-id instead"
        )
    if num_slices > 1 and not coordinator:
        raise ConfigError(
            f"{source} say {num_slices} slices, but not MEGASCALE_COORDINATOR_ADDRESS, the first "
            "host of the first slice; set it, or give --coordinator"
        )
    return TpuWorker(
        worker=worker,
        workers=tuple(hosts),
        megascale_coordinator=coordinator if num_slices > 1 else "",
        num_slices=num_slices,
        slice_id=slice_id,
        source=source,
    )
