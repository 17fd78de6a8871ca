"""End a process whose parent is gone: nobody waits for its work, and nobody would ever end it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_POLL_SECONDS = 1.0
#: Processes that are watched: a forked one has its parent's memory, but not its threads.
_WATCHED: set[int] = set()


def end_with_parent(is_alive: Callable[[], bool] = lambda: True) -> None:
    """Have this process end, whatever its threads do, when its parent has. Once is enough; more does nothing.

    Args:
        is_alive: says whether the parent lives, as far as it can: it may have been killed before this is called.
    """
    if os.getpid() not in _WATCHED:
        _WATCHED.add(os.getpid())
        given = os.getppid(), is_alive
        threading.Thread(target=_watch, args=given, name="laion-face-orphan", daemon=True).start()


def end_worker_with_parent() -> None:
    """Do so if this process is a worker of `multiprocessing`, or of `multiprocess`, which datasets has.

    Their pools' workers wait for ever for a parent that was killed, as do torch's in what takes long.
    """
    for name in ("multiprocessing", "multiprocess"):
        library = sys.modules.get(name)
        parent = library.parent_process() if library is not None else None
        if parent is not None:
            end_with_parent(parent.is_alive)


@contextmanager
def forks_end_with_this() -> Iterator[None]:
    """Have every process that is forked off this one in the block end when this one has.

    Workers that wait for their first task have not come to any code of ours.
    """
    _FORKING.append(os.getpid())
    try:
        yield
    finally:
        _FORKING.pop()


#: The processes, this one and those that it was forked off, that are in such a block.
_FORKING: list[int] = []


def _after_fork() -> None:
    if _FORKING:
        _WATCHED.add(os.getpid())
        given = _FORKING[-1], lambda: True
        threading.Thread(target=_watch, args=given, name="laion-face-orphan", daemon=True).start()
        _FORKING.clear()  # what this process forks is its own affair


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=_after_fork)


def _watch(parent: int, is_alive: Callable[[], bool]) -> None:
    while os.getppid() == parent and is_alive():
        time.sleep(_POLL_SECONDS)
    os._exit(0)
