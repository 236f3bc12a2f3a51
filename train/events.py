"""TensorBoard's event files, written synchronously.

tensorboardX's own writer tries again in a thread and when Python ends, and shows a traceback each time that the disk is
full.
"""

import contextlib
import math
import pathlib
import socket
import time
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

FLUSH = 60.0  # seconds from one flush to the disk to the next


class Events:
    """Scalars in a file of this run's own; those that an earlier run wrote after `step` are hidden.

    Events that do not fit on a full disk are lost, which does not stop the run.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        folder.mkdir(exist_ok=True)
        self._records = RecordWriter(str(folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"))
        self._flushed = -math.inf
        self._write(file_version="brain.Event:2")
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, name: str, value: float, step: int) -> None:
        self._write(step=step, summary=scalar(name, value))

    def _write(self, **event: Any) -> None:
        with contextlib.suppress(OSError):
            self._records.write(Event(wall_time=time.time(), **event).SerializeToString())
            if time.monotonic() - self._flushed > FLUSH:
                self._flushed = time.monotonic()
                self._records.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._records.close()
