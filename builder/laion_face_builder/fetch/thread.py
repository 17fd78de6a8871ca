"""The fetcher's thread and its event loop; `scheduler` says which fetches may start, and when.

Handing over between threads is batched: a burst of submissions wakes the loop once, and results are plain attributes
that the consumer finds without a lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from laion_face_builder.fetch import open_files
from laion_face_builder.fetch.cache import PictureCache
from laion_face_builder.fetch.curl_loop import WORKING
from laion_face_builder.fetch.flight import Flights
from laion_face_builder.fetch.job import Job, cancelled
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.machine import Machine
from laion_face_builder.fetch.scheduler import Scheduler
from laion_face_builder.fetch.stream_queue import StreamQueue

_LOG = logging.getLogger("laion_face")


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
            _LOG.exception("the fetcher's thread failed")
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
