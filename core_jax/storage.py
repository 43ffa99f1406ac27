"""Runs and data by URL (`gs://`, `s3://`, whatever fsspec knows), over a working copy on disk.

A run at a URL has a working copy in `$ALIGNAX_CACHE/runs`, and the job reads and writes that alone:
what needs a disk (ArrayRecord, tables, archives of arrays, appended lines) has one. `Mirror`
brings the copy up to date at the start, sends what is new while the job runs, and the rest at its
end. Object stores have no rename, but an object appears whole or not at all; a stage's `done.json`
and a checkpoint's table of checksums go last, so that what is cut off counts as not there, or is
passed over by the restore.

Input files at a URL are copied to `$ALIGNAX_CACHE/inputs`, again whenever they have changed.

Dimension key: none.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from core_jax.data.fetch import cache_folder
from core_jax.errors import StorageError
from core_jax.processes import several

SYNC_SECONDS = 5.0
"""Seconds between two looks for what is new in the working copy."""

NATIVE = "gs://"
"""Where Orbax writes the parts of several processes by itself."""

_URL = re.compile(r"^([a-z][a-z0-9+.-]*)://(.+)$")
_CHECKPOINTS = "/checkpoints/"
_MANIFEST = ".remote.json"
_LAST = ("done.json", "metadata")  # metadata: the table of a checkpoint, in its folder `meta`
_VERSION_FIELDS = ("etag", "ETag", "generation", "md5Hash", "LastModified", "created", "mtime")
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}
_LOGGER = logging.getLogger(__name__)


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL of a store and not a path of this machine's disk.

    >>> is_url("gs://bucket/run"), is_url("runs/demo"), is_url("C://x")
    (True, False, False)
    """
    return _URL.match(os.fspath(path)) is not None


def working_copy(url: str | os.PathLike[str]) -> pathlib.Path:
    """Returns where the working copy of a run's folder lies; a path of the disk stays as it is."""
    match = _URL.match(os.fspath(url))
    if match is None:
        return pathlib.Path(url)
    return cache_folder() / "runs" / match[1] / match[2].strip("/")


def url_of(path: str | os.PathLike[str]) -> str | None:
    """Returns the URL whose working copy a path lies in; None for any other path."""
    root = (cache_folder() / "runs").absolute()
    inside = pathlib.Path(os.path.abspath(path))
    if not inside.is_relative_to(root) or len(inside.relative_to(root).parts) < 2:
        return None
    scheme, *parts = inside.relative_to(root).parts
    return f"{scheme}://{'/'.join(parts)}"


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a file or folder to read: itself, or for a URL its copy in the cache.

    Raises:
      StorageError: the URL does not lead to a file or folder that can be read.
    """
    if not is_url(path):
        return pathlib.Path(path)
    url = os.fspath(path).rstrip("/")
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}/{url.rpartition('/')[2]}"
    target = cache_folder() / "inputs" / name
    with _clear_errors(url):
        system, root = _system(url)
        if system.isfile(root):
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = _Copy(target.parent, f"{url.rpartition('/')[0]}")
            copy.fetch({target.name: system.info(root)})
            return target
    pull(url, target)
    return target


_pulled: set[str] = set()


def local_run(run_dir: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a run's folder to read: itself, or for a URL its working copy, fetched once."""
    folder = working_copy(run_dir)
    if is_url(run_dir) and os.fspath(run_dir) not in _pulled:
        pull(os.fspath(run_dir), folder)
        _pulled.add(os.fspath(run_dir))
    return folder


def pull(url: str, folder: pathlib.Path, *, may_be_absent: bool = False) -> None:
    """Brings a folder up to date with a URL: fetches what is new there, removes what is gone.

    Files that were never at the URL stay: they are work that is still to be sent.

    Raises:
      StorageError: the URL cannot be read, or has nothing although it must have.
    """
    with _clear_errors(url):
        copy = _Copy(folder, url)
        remote = copy.remote_files()
        if several():  # read and written at the URL, see `checkpoint_place`
            remote = {name: info for name, info in remote.items() if _CHECKPOINTS not in name}
        if not remote and not may_be_absent:
            raise StorageError(f"'{url}' has no files; check the address")
        copy.fetch(remote)
        copy.forget_all_but(remote)


_mirrors: dict[pathlib.Path, "Mirror"] = {}


def publish(folder: pathlib.Path) -> None:
    """Sends a working copy that a running `Mirror` keeps; nothing to do for any other folder."""
    for root, mirror in _mirrors.items():
        if folder.is_relative_to(root):
            mirror.send()


def refresh(folder: pathlib.Path) -> None:
    """Fetches what another process has published into a running `Mirror`'s working copy."""
    for root, mirror in _mirrors.items():
        if folder.is_relative_to(root):
            mirror.fetch()


def checkpoint_place(folder: str | os.PathLike[str]) -> str:
    """Returns where the checkpoints of a folder are written: there, or at its URL.

    Several processes write a checkpoint together, which needs a place that all of them see.
    """
    url = url_of(folder) if several() else None
    return os.fspath(folder) if url is None else url


class Mirror(contextlib.AbstractContextManager):
    """A run's working copy, sent to its URL while the job runs and at its end.

    Args:
      url: of the run's folder; what is there is fetched first.
      sends: whether this process sends (one of several does).

    Example:
      with Mirror("gs://bucket/run") as folder:
          job(run_dir=folder)
    """

    def __init__(self, url: str, *, sends: bool = True):
        self.folder = working_copy(url)
        self._url = url
        self._sends = sends
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send_again_and_again, daemon=True)

    def __enter__(self) -> pathlib.Path:
        self.fetch()
        _pulled.add(self._url)
        _mirrors[self.folder] = self
        self._copy = _Copy(self.folder, self._url)
        if self._sends:
            self._thread.start()
        return self.folder

    def __exit__(self, *_: object) -> None:
        del _mirrors[self.folder]
        if self._sends:
            self._ended.set()
            self._thread.join()
            self.send()

    def fetch(self) -> None:
        """Fetches what is new at the URL."""
        pull(self._url, self.folder, may_be_absent=True)

    def send(self) -> None:
        """Sends what is new and removes what is gone; returns when it is there.

        Raises:
          StorageError: the store does not take it; the working copy has everything.
        """
        with self._lock, _clear_errors(self._url):
            self._copy.send()

    def _send_again_and_again(self) -> None:
        """Sends every few seconds; a store that fails for a while costs a warning."""
        while not self._ended.wait(SYNC_SECONDS):
            try:
                self.send()
            except StorageError as error:
                _LOGGER.warning("%s; tried again in %.0f s", error, SYNC_SECONDS)


class _Copy:
    """A folder and the URL it belongs to, with a list of what both sides are known to have."""

    def __init__(self, folder: pathlib.Path, url: str):
        self._folder = folder
        self._system, self._root = _system(url)
        self._known: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError, ValueError):
            self._known = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))

    def remote_files(self) -> dict[str, Mapping[str, Any]]:
        """What lies below the URL: facts by path."""
        self._system.invalidate_cache()
        prefix = self._root.rstrip("/") + "/"
        try:
            found = self._system.find(self._root, detail=True)
        except FileNotFoundError:
            return {}
        return {path.removeprefix(prefix): info for path, info in found.items() if path != prefix}

    def fetch(self, remote: Mapping[str, Mapping[str, Any]]) -> None:
        """Fetches the files whose version here is another; each appears whole."""
        for name, info in remote.items():
            path, version = self._folder / name, _version(info)
            known = self._known.get(name)
            if known and known["remote"] == version and path.is_file():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_name(f".{path.name}.part")
            self._system.get_file(f"{self._root.rstrip('/')}/{name}", str(scratch))
            os.replace(scratch, path)
            self._known[name] = {"remote": version, "local": _stamp(path)}
        self._write_known()

    def forget_all_but(self, remote: Mapping[str, Any]) -> None:
        """Removes the files that came from the URL, or went there, and are no longer there."""
        for name in [name for name in self._known if name not in remote]:
            (self._folder / name).unlink(missing_ok=True)
            del self._known[name]
            with contextlib.suppress(OSError):  # a folder that still holds something stays
                for parent in (self._folder / name).relative_to(self._folder).parents:
                    (self._folder / parent).rmdir()
        self._write_known()

    def send(self) -> None:
        """Sends new files, those that complete something last; then removes what is gone here.

        What completes something is listed first: all that belongs to it is whole by then.
        """
        completing = [path for path in self._files() if path.name in _LAST]
        others = [path for path in self._files() if path.name not in _LAST]
        sent = {}
        for path in (*others, *completing):
            name = path.relative_to(self._folder).as_posix()
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                stamp = _stamp(path)
                if self._known.get(name, {}).get("local") == stamp:
                    continue
                self._system.put_file(str(path), f"{self._root.rstrip('/')}/{name}")
                sent[name] = stamp
        remote = self.remote_files() if sent else {}
        for name in sent.keys() & remote.keys():
            self._known[name] = {"remote": _version(remote[name]), "local": sent[name]}
        gone = [name for name in self._known if not (self._folder / name).exists()]
        for name in sorted(gone, key=lambda name: name.rpartition("/")[2] not in _LAST):
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(f"{self._root.rstrip('/')}/{name}")
            del self._known[name]
        self._write_known()

    def _files(self) -> Iterator[pathlib.Path]:
        """The files to be sent: no hidden ones, and no checkpoints that are being written."""
        for folder, folders, names in os.walk(self._folder):
            folders[:] = [name for name in folders if "orbax-checkpoint-tmp" not in name]
            for name in names:
                if not name.startswith(".") and not name.endswith((".tmp", ".part")):
                    yield pathlib.Path(folder, name)

    def _write_known(self) -> None:
        """Writes the list, all or nothing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        scratch = self._folder / f"{_MANIFEST}.{os.getpid()}.part"
        scratch.write_text(json.dumps(self._known), encoding="utf-8")
        os.replace(scratch, self._folder / _MANIFEST)


def _system(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system for a URL and the path in it."""
    import fsspec  # slow to import, and needed for URLs only

    scheme = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(scheme, f"the fsspec package for {scheme}")
        raise StorageError(
            f"'{url}': {scheme}:// needs another package ({error}); pip install {package}"
        ) from error
    except ValueError as error:
        raise StorageError(
            f"'{url}': {error}; known are {', '.join(f'{name}://' for name in _PACKAGES)} and "
            "paths of this machine"
        ) from error


@contextlib.contextmanager
def _clear_errors(url: str) -> Iterator[None]:
    """Names the URL and the remedy for whatever the library of a store raises."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # each library of a store has errors of its own
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise StorageError(
            f"'{url}' cannot be read or written ({reason}); check the address, the rights of "
            "this user there and the network, or copy it to a path of this machine"
        ) from error


def _version(info: Mapping[str, Any]) -> str:
    """Returns what changes when an object is written anew."""
    found = next((str(info[name]) for name in _VERSION_FIELDS if info.get(name)), "")
    return f"{info.get('size')} {found}"


def _stamp(path: pathlib.Path) -> list[int]:
    """Returns what changes when a file is written anew."""
    stat = path.stat()
    return [stat.st_mtime_ns, stat.st_size]
