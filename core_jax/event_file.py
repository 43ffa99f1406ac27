"""A file of scalars for TensorBoard, written by the thread that logs them.

Records and events are those of the library tensorboardX. Its `SummaryWriter` writes in a thread,
which dies with a stack trace where a disk is full, and its caller learns of it late or never.

Dimension key: none.
"""

import os
import pathlib
import socket
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

_FLUSH_SECONDS = 30.0
_PROTO: Any = event_pb2
"""Its names are made at import, where no type checker sees them."""


class EventFile:
    """Scalars of one stage; whoever makes it closes it.

    Args:
      folder: is made if absent, and gets one more file.
      restored_step: the step that training goes on from. TensorBoard drops what earlier files of
        the folder say of later steps.

    Raises:
      OSError: what the folder or its disk cannot take; so do all its methods.
    """

    def __init__(self, folder: str | os.PathLike, *, restored_step: int):
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._records = RecordWriter(str(path / name))
        self._flushed = time.monotonic()
        self._write(_PROTO.Event(file_version="brain.Event:2"))
        start = _PROTO.SessionLog(status=_PROTO.SessionLog.START)
        self._write(_PROTO.Event(step=restored_step + 1, session_log=start))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars by name."""
        for name, value in scalars.items():
            self._write(_PROTO.Event(step=step, summary=summary.scalar(name, value)))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._records.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes what is left; the file is closed also where that fails."""
        self._records.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
