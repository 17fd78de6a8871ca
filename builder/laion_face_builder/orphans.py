"""End a process whose parent is gone: nobody waits for its work, and nobody would ever end it."""

from __future__ import annotations

import os
import sys
import threading
import time

_POLL_SECONDS = 1.0
#: Processes that are watched: a forked one has its parent's memory, but not its threads.
_WATCHED: set[int] = set()


def end_with_parent() -> None:
    """Have this process end, whatever its threads do, when its parent has. Once is enough; more does nothing."""
    if os.getpid() not in _WATCHED:
        _WATCHED.add(os.getpid())
        threading.Thread(target=_watch, args=(os.getppid(),), name="laion-face-orphan", daemon=True).start()


def end_worker_with_parent() -> None:
    """Do so if this process is a worker of `multiprocessing`, or of `multiprocess`, which datasets has.

    Their pools' workers wait for ever for a parent that was killed, as do torch's in what takes long.
    """
    for name in ("multiprocessing", "multiprocess"):
        library = sys.modules.get(name)
        if library is not None and library.parent_process() is not None:
            end_with_parent()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(0)
