"""Fetch pictures in the background: `Fetcher.submit(url)` gives a ticket, `Ticket.result()` the picture.

One thread does all the network, so that fetching goes on while the consumer decodes or trains. It starts with the first
submission, and starts anew in a forked child; the parent's connections are never touched there. `shared_fetcher` gives
all streams of a process the same one, and with it one set of bounds.

The thread runs an event loop, and `scheduler` says which fetches may start. Handing over between threads is batched: a
burst of submissions wakes the loop once, and results are plain attributes that the consumer finds without a lock.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from laion_face_builder.fetch import open_files
from laion_face_builder.fetch.cache import PictureCache
from laion_face_builder.fetch.curl_loop import WORKING
from laion_face_builder.fetch.flight import Flights
from laion_face_builder.fetch.job import Job, Ticket, cancelled
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.machine import Machine
from laion_face_builder.fetch.scheduler import Scheduler
from laion_face_builder.fetch.stream_queue import OpenQueues, StreamQueue
from laion_face_builder.images.pictures import Picture
from laion_face_builder.log import logger


class FetchThread:
    """The thread that fetches, until `close`. All but `post`, `submit`, `end`, `wake` and `close` belongs to it."""

    def __init__(self, limits: FetchLimits, cache: PictureCache | None) -> None:
        self._limits, self._cache, self._owner = open_files.within(limits), cache, os.getpid()
        self._inbox: deque[Callable[[], object]] = deque()
        self._is_called = False
        self._loop = asyncio.SelectorEventLoop()
        self._flights: Flights | None = None
        self._machine = Machine(is_shared=False)
        self._scheduler: Scheduler | None = None
        self._stop = False
        self._ended = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="laion-face-fetch", daemon=True)
        self._thread.start()

    # What other threads may call.

    def post(self, action: Callable[[], object]) -> None:
        """Have `action` done in the thread, soon. Many at once cost one wake-up."""
        if os.getpid() != self._owner:
            return  # a forked child has nobody to hand this to
        self._inbox.append(action)
        if not self._is_called:
            self._is_called = True
            # Closed meanwhile: the thread's last act, or `submit`, tells whoever waits.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._work)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Hand jobs of one queue to the thread."""
        self.post(lambda: self._accept(jobs))
        if self._ended:
            for job in jobs:
                job.ticket.settle(cancelled())

    def end(self, queue: StreamQueue, jobs: list[Job] | None) -> None:
        """Have jobs of a queue ended; with None all of them, and the queue."""
        self.post(lambda: self._end(queue, jobs))

    def wake(self) -> None:
        """Have the thread look at the queues again: a consumer has made room."""
        self.post(lambda: None)  # every round of actions ends with a look at the queues

    def close(self) -> None:
        """End everything under way and the thread."""
        if threading.current_thread() is self._thread:
            self._halt()  # the garbage collector found the fetcher while it ran in here
            return
        with self._closing:
            if not self._ended:
                self.post(self._halt)
                self._thread.join()

    def before_fork(self) -> None:
        """Prepare for a fork, as `CurlLoop.before_fork`."""
        if self._flights is not None:
            self._flights.before_fork()

    def inherited(self) -> list[object]:
        """Return what a forked child must never free, because the parent's connections hang on it.

        The child lets go of the locks, too: they would outlive the parent.
        """
        self._machine.close()
        return [self, *(self._flights.inherited() if self._flights else [])]

    # The thread.

    def wait_for_room(self, job: Job) -> None:
        """Give up the place of a job whose body waits for room, as `Scheduler.wait_for_room`."""
        if self._scheduler is not None:
            self._scheduler.wait_for_room(job)
            # Not now: libcurl is at work. And the consumer may have moved on before it saw that somebody waits.
            self.wake()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except Exception:
            logger.exception("the fetcher's thread failed")
            raise
        finally:
            self._stop = self._ended = True
            self._loop.close()
            # What came in after the loop's last round: with the thread stopped, jobs are only told so.
            while self._inbox:
                self._inbox.popleft()()

    async def _main(self) -> None:
        self._stopped = self._loop.create_future()
        self._flights = flights = Flights(self._limits, self._cache)
        with WORKING:  # no child is born with half of it
            self._machine = Machine()
        self._scheduler = scheduler = Scheduler(self._limits, flights, self._machine)
        try:
            self._work()
            if not self._stop:
                await self._stopped
        finally:
            self._stop = True
            await scheduler.stop()
            flights.close()
            self._machine.close()

    def _halt(self) -> None:
        self._stop = True
        if self._scheduler is not None and not self._stopped.done():
            self._stopped.set_result(None)

    def _work(self) -> None:
        """Do what other threads asked for, then start what may start."""
        if self._scheduler is None:
            return  # `_main` does it first thing
        self._is_called = False
        while self._inbox:
            self._inbox.popleft()()
        self._scheduler.schedule()

    def _end(self, queue: StreamQueue, jobs: list[Job] | None) -> None:
        if self._scheduler is not None:
            self._scheduler.end(queue, jobs)

    def _accept(self, jobs: Sequence[Job]) -> None:
        if self._scheduler is None or self._stop:
            for job in jobs:
                job.ticket.settle(cancelled())
        else:
            self._scheduler.accept(jobs)


__all__ = ["Fetcher", "Ticket", "shared_fetcher"]


class Fetcher:
    """Fetches pictures; safe to use from several threads. A context manager; dropped without `close`, it closes itself.

    Args:
        limits: the bounds of every fetch.
        cache: keeps pictures between epochs; None keeps none.
    """

    def __init__(self, limits: FetchLimits, cache: PictureCache | None = None) -> None:
        self.limits, self._cache = limits, cache
        self._lock = threading.Lock()
        self._thread: FetchThread | None = None
        self._singles: Stream | None = None
        self._open = OpenQueues()
        self._users = 0
        self._stop: weakref.finalize[[], Fetcher] | None = None
        _ALL.add(self)

    def submit(self, url: str) -> Ticket:
        """Start fetching `url`. What is wrong with it shows in the ticket's result; nothing bounds unread results."""
        return self._singles_stream().submit([url])[0]

    def stream(self, max_buffer_bytes: float, *, by_arrival: bool = False) -> Stream:
        """Open a queue for one consumer; `close` it when done.

        Args:
            max_buffer_bytes: of bodies that are arriving or wait to be taken, of all open streams of this fetcher
                together, each its part; the one that is waited for always comes.
            by_arrival: whether the consumer takes whatever is done (`Stream.next_done`), not the next in order.
        """
        return Stream(self._running(), max_buffer_bytes, self._open, by_arrival=by_arrival)

    def close(self) -> None:
        """End all that is under way, every connection and the thread. Another `submit` starts anew."""
        with self._lock:
            stop, self._stop, self._thread, self._singles = self._stop, None, None, None
        if stop is not None:
            stop()

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> tuple[FetchLimits, PictureCache | None]:
        return self.limits, self._cache

    def __setstate__(self, state: tuple[FetchLimits, PictureCache | None]) -> None:
        self.__init__(*state)  # type: ignore[misc]  # a spawned worker gets a fetcher of its own

    def _running(self) -> FetchThread:
        with self._lock:
            if self._thread is None:
                self._thread = FetchThread(self.limits, self._cache)
                # The thread must not keep the fetcher, else it would never be dropped.
                self._stop = weakref.finalize(self, self._thread.close)
            return self._thread

    def _singles_stream(self) -> Stream:
        thread = self._running()
        with self._lock:
            if self._singles is None:
                self._singles = Stream(thread, float("inf"), OpenQueues())
            return self._singles

    def _before_fork(self) -> None:
        if self._thread is not None:
            self._thread.before_fork()

    def _after_fork(self) -> None:
        if self._stop is not None:
            self._stop.detach()
        for thing in self._thread.inherited() if self._thread is not None else ():
            # Freed, it would say goodbye on connections that are the parent's. So it stays, whatever happens.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
        self._lock = threading.Lock()
        self._open = OpenQueues()
        self._stop, self._thread, self._singles = None, None, None


class Stream:
    """One consumer's queue: submit addresses in order; take pictures in order, or as they come."""

    def __init__(self, thread: FetchThread, max_bytes: float, among: OpenQueues, *, by_arrival: bool = False) -> None:
        self._thread, self._among = thread, among
        self._queue = StreamQueue(
            thread.end, thread.wake, thread.wait_for_room, max_bytes, by_arrival=by_arrival, among=among
        )
        among.add(self._queue)

    def submit(self, urls: Sequence[str]) -> list[Ticket]:
        """Start fetching all of these; one call for many is cheaper than many."""
        jobs = [self._queue.make_job(url) for url in urls]
        self._thread.submit(jobs)
        return [job.ticket for job in jobs]

    @property
    def is_full(self) -> bool:
        """Whether the buffer has no room for more."""
        return self._queue.is_stalled

    @property
    def has_done(self) -> bool:
        """Whether `next_done` would answer at once."""
        return self._queue.has_done

    def is_done_within(self, ticket: Ticket, seconds: float) -> bool:
        """Say whether the ticket is done, now or after a wait; it has to be the next in order."""
        return self._queue.is_done_within(ticket, seconds)

    def has_done_within(self, oldest: Ticket, seconds: float) -> bool:
        """Say whether `next_done` would answer at once, now or after a wait."""
        return self._queue.has_done_within(oldest, seconds)

    def part_of(self, amount: int) -> int:
        """Return this stream's part of an amount that is for all open streams of the fetcher; 1 at least."""
        return max(1, int(self._among.part_of(amount)))

    def next_done(self, oldest: Ticket) -> Ticket:
        """Wait for a ticket that is done and was not given before; for streams by arrival.

        Args:
            oldest: the first ticket that was not given yet; its picture comes even if the buffer has no room.
        """
        return self._queue.next_done(oldest)

    def take(self, ticket: Ticket) -> Picture:
        """Wait for the picture of a ticket: the next in order, or one of `next_done`. Raises as `Ticket.result`."""
        return self._queue.take(ticket)

    def close(self) -> None:
        """End the fetches under way."""
        self._among.remove(self._queue)
        self._queue.post_end(None)


@contextmanager
def shared_fetcher(limits: FetchLimits, cache: PictureCache | None = None) -> Iterator[Fetcher]:
    """Yield the process's one fetcher for these limits and this cache; close it when its last user is done."""
    key = limits, cache and (cache.folder, cache.max_bytes)
    with _SHARING:
        fetcher = _SHARED.get(key) or Fetcher(limits, cache)
        fetcher._users += 1
        _SHARED[key] = fetcher
    try:
        yield fetcher
    finally:
        with _SHARING:
            fetcher._users -= 1
            is_last = not fetcher._users
            if is_last and _SHARED.get(key) is fetcher:
                del _SHARED[key]
        if is_last:
            fetcher.close()


#: Reentrant: generators are dropped, and with them their use of a fetcher, wherever Python collects garbage.
_SHARING = threading.RLock()
_SHARED: dict[tuple[FetchLimits, object], Fetcher] = {}
_ALL: weakref.WeakSet[Fetcher] = weakref.WeakSet()


def _before_fork() -> None:
    WORKING.acquire()
    for fetcher in list(_ALL):
        fetcher._before_fork()


def _in_child() -> None:
    WORKING._at_fork_reinit()  # type: ignore[attr-defined]  # as the standard library's own locks
    for fetcher in list(_ALL):
        fetcher._after_fork()
    # What the parent shares is the parent's.
    _SHARING._at_fork_reinit()  # type: ignore[attr-defined]
    _SHARED.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=WORKING.release, after_in_child=_in_child)
