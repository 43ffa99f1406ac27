"""Files of one JSON object per line that grow batch by batch and survive being cut off.

Dimension key: none.
"""

import logging
import os
import pathlib
from collections.abc import Sequence
from typing import BinaryIO

_LOGGER = logging.getLogger(__name__)


def cut_torn_line(path: pathlib.Path, remedy: str) -> None:
    """Removes what follows the last line break: a row that was cut off while it was written.

    Args:
      path: the file; nothing happens where there is none.
      remedy: what becomes of the row now, for the log.
    """
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        _LOGGER.warning(
            "'%s' ends in a row of %d bytes that was cut off; it is removed and %s",
            path,
            len(content) - whole,
            remedy,
        )
        with path.open("r+b") as file:
            file.truncate(whole)


def append_lines(file: BinaryIO, lines: Sequence[bytes]) -> None:
    """Appends whole lines; they are on disk when this returns."""
    file.write(b"".join(lines))
    file.flush()
    os.fsync(file.fileno())
