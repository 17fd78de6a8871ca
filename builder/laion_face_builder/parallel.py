"""Parallel work in threads: Arrow, NumPy and the network release Python's lock (the GIL) while they work."""

from __future__ import annotations

import os
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
