"""Children that end with their parent, even if it is killed with -9: none may race with a download started again.

A child's standard input is a pipe that its parent holds and never writes to, so its end is the parent's; and since a
forked child of the parent may hold it too, the child also polls who its parent is. Then it kills its whole process
group. While it lives it holds a shared lock, so that whoever comes next can wait until the last of them is gone.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

from laion_face_builder.errors import DownloadError

#: The process whose end is our end; each child puts its own id there for its children.
PARENT_VARIABLE = "LAION_FACE_PARENT_PID"
#: The lock file to hold while we live.
LOCK_VARIABLE = "LAION_FACE_WRITERS_LOCK"
_POLL_SECONDS = 0.2
_WAIT_SECONDS = 60.0


def end_with_parent(*, pipe: bool) -> None:
    """Called first in a child: holds the lock, and watches the parent from threads. Does nothing outside of one.

    Args:
        pipe: whether standard input ends when the parent does.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        return
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    if lock := os.environ.get(LOCK_VARIABLE):
        # Never closed: the kernel lets go of it when the process ends, however it ends.
        fcntl.flock(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), fcntl.LOCK_SH)
    threading.Thread(target=_watch, args=(int(parent),), daemon=True, name="parent-watch").start()
    if pipe:
        threading.Thread(target=_watch_pipe, daemon=True, name="pipe-watch").start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _watch_pipe() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def wait_for_orphans(lock: Path, seconds: float = _WAIT_SECONDS) -> None:
    """Returns when no child of an earlier run holds `lock` any more.

    Raises:
        DownloadError: one still does after `seconds`.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        end = time.monotonic() + seconds
        while not _free(descriptor):
            if time.monotonic() > end:
                raise DownloadError(f"{lock}: processes of an earlier download still hold it. End them and try again.")
            time.sleep(_POLL_SECONDS)
    finally:
        os.close(descriptor)


def _free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
