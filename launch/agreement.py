"""Whether all processes of a job run the same code with the same config on the same data.

What differs would end in a hang (programs that wait for each other's collectives) or in numbers
that nobody can reproduce. So each process says what it has, and all of them compare.

Dimension key: none.
"""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core_jax.config import to_dict
from core_jax.errors import ConfigError
from launch.rendezvous import Rendezvous

_PACKAGES = ("core_jax", "rec_jax", "reasoning_jax", "launch")
_VERSIONS = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION")
_ABSENT = "(absent)"
_WHOLE_BYTES = 64 << 20
_END_BYTES = 1 << 20
_MOST_LINES = 20
_SHARED_SECONDS = 30.0


def facts_of(config: Any) -> dict[str, str]:
    """What this process runs, by item.

    Args:
      config: the job's config. Every text in it that names a file or folder of this host is an
        input whose content counts, but for the run folder.

    Returns:
      Item to value: "code rec_jax", "version jax", "environment XLA_FLAGS", "config seed",
      "data log.path" and so on.
    """
    facts = {f"code {name}": _code_digest(name) for name in _PACKAGES}
    facts["version python"] = platform.python_version()
    facts |= {f"version {name}": _version(name) for name in _VERSIONS}
    facts |= {f"environment {name}": os.environ.get(name, _ABSENT) for name in _ENVIRONMENT}
    for name, value in _fields(to_dict(config)):
        facts[f"config {name}"] = json.dumps(value)
        if isinstance(value, str) and value and name != "run_dir" and "://" not in value:
            facts[f"data {name}"] = data_digest(value)
    return facts


def summary(facts: Mapping[str, str]) -> dict[str, str]:
    """Fingerprints of code, config and each input, in short."""
    kinds = {
        kind: "".join(f"{name}={value};" for name, value in facts.items() if name.startswith(kind))
        for kind in ("code ", "version ", "environment ", "config ")
    }
    short = {kind.strip(): _short(text.encode()) for kind, text in kinds.items()}
    inputs = {
        name: value
        for name, value in facts.items()
        if name.startswith("data ") and value != _ABSENT
    }
    return short | inputs


def check_agreement(facts: Sequence[Mapping[str, str]], hosts: Sequence[str]) -> None:
    """Raises unless all processes say the same.

    Args:
      facts: `facts_of` of each process.
      hosts: where each runs.

    Raises:
      ConfigError: names each item, and the processes by what they say of it.
    """
    items = sorted({item for one in facts for item in one})
    lines = []
    for item in items:
        said: dict[str, list[int]] = {}
        for number, one in enumerate(facts):
            said.setdefault(one.get(item, _ABSENT), []).append(number)
        if len(said) > 1:
            values = "; ".join(f"{_named(who, hosts)}: {value}" for value, who in said.items())
            lines.append(f"  {item}: {values}")
    if lines:
        shown = lines[:_MOST_LINES]
        more = f"\n  and {len(lines) - len(shown)} more" if len(lines) > len(shown) else ""
        raise ConfigError(
            "the processes of this job disagree:\n" + "\n".join(shown) + more + "\nGive every host "
            "the same code, packages, command line and input files, and start again"
        )


def check_shared(meeting: Rendezvous, process_id: int, run_dir: str) -> None:
    """Raises unless the run folder is one folder for all processes.

    Process 0 leaves a file in it for a moment, which the others must see. An address with a
    scheme (gs://...) is one for all.

    Raises:
      ConfigError: it is not, or it cannot be made; in every process.
    """
    if "://" in run_dir:
        return
    folder = pathlib.Path(run_dir)
    token, problem = "", ""
    if process_id == 0:
        token = f".shared-{os.urandom(6).hex()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / token).touch()
        except OSError as error:
            problem = f"run folder '{run_dir}' cannot be made ({error}); choose another --run-dir"
    token, problem = meeting.exchange([token, problem])[0]
    if problem:
        raise ConfigError(problem)
    seen = meeting.exchange(_appears(folder / token))
    if process_id == 0:
        (folder / token).unlink(missing_ok=True)
    blind = [number for number, one in enumerate(seen) if not one]
    if blind:
        raise ConfigError(
            f"run folder '{run_dir}' is not one folder for all processes: "
            f"{_named(blind, meeting.hosts)} did not see within {_SHARED_SECONDS:g} s what process "
            f"0 ({meeting.hosts[0]}) wrote there; put it on a file system that all hosts mount "
            "(NFS, Filestore, Lustre), or into a bucket"
        )


def data_digest(path: str) -> str:
    """What a file or folder holds, in short; "(absent)" for what is neither.

    Of files above 64 MiB the size and both ends count, of a folder's files names and sizes.
    """
    try:
        found = pathlib.Path(path)
        if found.is_file():
            return _file_digest(found)
        if found.is_dir():
            inside = sorted(one for one in found.rglob("*") if one.is_file())
            rows = [f"{one.relative_to(found)} {one.stat().st_size}" for one in inside]
            return f"{len(rows)} files, {_short(chr(10).join(rows).encode())}"
    except (OSError, ValueError):  # a text that can be no path, or one that may not be read
        return _ABSENT
    return _ABSENT


def _file_digest(path: pathlib.Path) -> str:
    """Digest of a file's content and size."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
        else:
            digest.update(file.read(_END_BYTES))
            file.seek(-_END_BYTES, os.SEEK_END)
            digest.update(file.read())
    return f"{size} bytes, {digest.hexdigest()[:16]}"


def _appears(path: pathlib.Path) -> bool:
    """Whether a file is there, or comes within a time; listing a folder renews what NFS knows."""
    deadline = time.monotonic() + _SHARED_SECONDS
    while time.monotonic() < deadline:
        if path.parent.is_dir() and path.name in os.listdir(path.parent):
            return True
        time.sleep(0.1)
    return False


def _code_digest(package: str) -> str:
    """Digest of a package's source files, by name."""
    root = pathlib.Path(__file__).resolve().parent.parent / package
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    """Version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return _ABSENT


def _fields(data: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a config's fields."""
    if isinstance(data, dict) and data:
        for name, value in data.items():
            yield from _fields(value, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, data


def _named(numbers: Sequence[int], hosts: Sequence[str]) -> str:
    """Processes with their hosts."""
    shown = ", ".join(f"{number} ({hosts[number]})" for number in numbers[:4])
    rest = f" and {len(numbers) - 4} more" if len(numbers) > 4 else ""
    return f"process{'es' if len(numbers) > 1 else ''} {shown}{rest}"


def _short(data: bytes) -> str:
    """A short digest."""
    return hashlib.sha256(data).hexdigest()[:16]
