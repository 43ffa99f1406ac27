"""Faults of disks and files as one clear error: what happened, to which file, and the remedy.

Python, Polars and TensorStore report the same fault of a file system by different exceptions; all
carry the number that the operating system gave (`errno`), if only in their text.

Dimension key: none.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from core_jax.errors import AlignaxError, StorageError

_NUMBER = re.compile(r"os error (\d+)|os_error_code='(\d+)'")
_BY_CLASS = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    NotADirectoryError: errno.ENOTDIR,
    IsADirectoryError: errno.EISDIR,
    PermissionError: errno.EACCES,
}
_SPACE = "free space there, then start the same command again: it goes on from what is complete"
_IN_THE_WAY = "move it away, or choose another folder"
_RIGHTS = "give this user the right to write there, or choose another folder"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), then start the same command again",
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOTDIR: f"a file is where a folder should be; {_IN_THE_WAY}",
    errno.EEXIST: f"a file is where a folder should be; {_IN_THE_WAY}",
    errno.EISDIR: f"a folder is where a file should be; {_IN_THE_WAY}",
    errno.ENOENT: "put the file back, or remove the stage's folder so that it is done again",
    errno.EIO: "the disk or the network drive fails; use another, or restore from a copy",
    errno.ESTALE: "the network drive lost it; mount the drive again, then start again",
}


def fault_number(error: BaseException) -> int | None:
    """Returns the operating system's number of a fault of files; None for any other error.

    >>> fault_number(OSError(28, "No space left on device")) == errno.ENOSPC
    True
    >>> fault_number(ValueError("parquet: underlying IO error (os error 28)"))
    28
    >>> fault_number(ValueError("28 is not a size"))
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        found = _NUMBER.search(str(error))
        number = int(found[1] or found[2]) if found else None
    if number is None:
        number = next((n for kind, n in _BY_CLASS.items() if isinstance(error, kind)), None)
    return number if number in _REMEDIES else None


def describe_fault(error: BaseException) -> str | None:
    """Returns what happened to which file and what helps; None if it is no fault of files."""
    number = fault_number(error)
    if number is None:
        return None
    filename = getattr(error, "filename", None)
    cause = os.strerror(number)
    if filename is not None:
        cause = f"'{os.fspath(filename)}': {cause}"
    elif not (isinstance(error, OSError) and error.errno is not None):
        cause = f"{cause} ({' '.join(str(error).split())[:200]})"
    return f"{cause}; {_REMEDIES[number]}"


@contextlib.contextmanager
def clear_storage_errors(what: str) -> Iterator[None]:
    """Turns faults of files inside the block into a `StorageError`; lets other errors pass.

    Args:
      what: names the work and its folder, the beginning of the message.

    Raises:
      StorageError: a file or folder could not be read or written.
    """
    try:
        yield
    except AlignaxError:
        raise
    except Exception as error:
        reason = describe_fault(error)
        if reason is None:
            raise
        raise StorageError(f"{what}: {reason}") from error
