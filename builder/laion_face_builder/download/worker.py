"""The worker process that `workers` starts: `python -m laion_face_builder.download.worker DESCRIPTOR THREADS`.

It does the calls that come through the socket, and ends when that is closed, or when its parent has ended.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from laion_face_builder.errors import LaionFaceError
from laion_face_builder.log import logger

_POLL_SECONDS = 1.0


class _Line(logging.Handler):
    """Sends messages to the parent, from any thread; what is logged, too."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection, self._speaking = connection, threading.Lock()

    def tell(self, kind: str, number: int, value: Any) -> None:
        """Send one message; the parent may be gone."""
        with self._speaking, suppress(OSError):
            self._connection.send((kind, number, value))

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line of the log."""
        self.tell("log", record.levelno, record.getMessage())


def _do(line: _Line, number: int, call: Any) -> None:
    try:
        line.tell("done", number, call.run(lambda value: line.tell("progress", number, value)))
    except (LaionFaceError, OSError) as error:
        line.tell("failed", number, error.with_traceback(None))
    except BaseException as error:  # Whatever it is, some sample may be what provokes it.
        traceback.print_exc()
        line.tell("died", number, f"{type(error).__name__}: {error}")


def main() -> None:
    """Do calls until the parent is gone."""
    parent, connection = os.getppid(), Connection(int(sys.argv[1]))
    line = _Line(connection)
    logger.addHandler(line)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    pool = ThreadPoolExecutor(int(sys.argv[2]), thread_name_prefix="laion-face-shard")
    with suppress(EOFError, OSError):
        while os.getppid() == parent:
            if connection.poll(_POLL_SECONDS):
                pool.submit(_do, line, *connection.recv())
    os._exit(0)  # whatever the threads are doing


if __name__ == "__main__":
    main()
