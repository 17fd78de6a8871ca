"""Run work beside this thread: in threads, and in Python processes of its own.

Threads help where Arrow, NumPy or the network release Python's lock (the GIL). Child processes import what is
installed, never what lies in the current folder.

img2dataset brings a package called `dataclasses` of 2018 into site-packages. It must not come before the standard
library, as it would if a child were told by PYTHONPATH where our package is: installed, it is found without.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def cores() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[T], U], items: Iterable[T], threads: int) -> Iterator[U]:
    """Yield work(item) of each item, in the items' order, with up to `threads` of them at work at the same time.

    No more than `threads` results are under way or waiting, so memory is bounded. After an error nothing new is begun,
    and what is under way is waited for; not so after Ctrl-C.
    """
    waiting: deque[Future[U]] = deque()
    rest = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="laion-face")
    try:
        waiting.extend(pool.submit(work, item) for item in islice(rest, threads))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield result
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()


#: Python 3.10 has no "safe path" alone: there the environment's PYTHON… variables are left out, too.
_ISOLATED = "-P" if sys.version_info >= (3, 11) else "-I"


def python(*arguments: str) -> list[str]:
    """Return the command that runs this very Python with `arguments`, isolated from the folder that it is run in."""
    return [sys.executable, _ISOLATED, *arguments]


def interpreter() -> str:
    """Return the path of this Python, for libraries that start it themselves, as Spark does."""
    return sys.executable
