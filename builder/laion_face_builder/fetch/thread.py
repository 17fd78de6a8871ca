"""The fetcher's thread: its event loop, and who may start when.

A job starts when four things are there at once: its turn in its queue, room in the queue's buffer, a free place in
flight, and a free connection to its host. Nothing is held while waiting for the rest, so no two streams can block each
other. Handing over between threads is batched: a burst of submissions wakes the loop once, and results are plain
attributes that the consumer finds without a lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch import faults
from laion_face_builder.fetch.cache import PictureCache
from laion_face_builder.fetch.flight import Flights
from laion_face_builder.fetch.hosts import Hosts
from laion_face_builder.fetch.job import FetchedPicture, Job, Outcome, cancelled
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.policy import Again
from laion_face_builder.fetch.stream_queue import StreamQueue
from laion_face_builder.fetch.web_address import WebAddress

_LOG = logging.getLogger("laion_face")


class FetchThread:
    """Runs until `close`. All but `post`, `submit`, `end`, `wake` and `close` belongs to its own thread."""

    def __init__(self, limits: FetchLimits, cache: PictureCache | None) -> None:
        self._limits, self._cache, self._owner = limits, cache, os.getpid()
        self._inbox: deque[Callable[[], object]] = deque()
        self._is_called = False
        self._queues: list[StreamQueue] = []
        self._open: set[Job] = set()
        self._hosts: Hosts[Job] = Hosts(limits.per_host)
        self._flying = 0
        self._loop = asyncio.SelectorEventLoop()
        self._flights: Flights | None = None
        self._stop = False
        self._ended = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="laion-face-fetch", daemon=True)
        self._thread.start()

    # What other threads may call.

    def post(self, action: Callable[[], object]) -> None:
        """Has `action` done in the thread, soon. Many at once cost one wake-up."""
        if os.getpid() != self._owner:
            return  # a forked child has nobody to hand this to
        self._inbox.append(action)
        if not self._is_called:
            self._is_called = True
            # Closed meanwhile: the thread's last act, or `submit`, tells whoever waits.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._work)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Takes jobs of one queue."""
        self.post(lambda: self._accept(jobs))
        if self._ended:
            for job in jobs:
                job.ticket.settle(cancelled())

    def end(self, queue: StreamQueue, jobs: list[Job] | None) -> None:
        """Ends jobs of a queue; with None all of them, and the queue."""
        self.post(lambda: self._end(queue, jobs))

    def wake(self) -> None:
        """Looks at the queues again: a consumer has made room."""
        self.post(self._schedule)

    def close(self) -> None:
        """Ends everything under way and the thread."""
        if threading.current_thread() is self._thread:
            self._halt()  # the garbage collector found the fetcher while it ran in here
            return
        with self._closing:
            if not self._ended:
                self.post(self._halt)
                self._thread.join()

    def before_fork(self) -> None:
        """As `CurlLoop.before_fork`."""
        if self._flights is not None:
            self._flights.before_fork()

    def inherited(self) -> list[object]:
        """For a forked child: what must never be freed there, because the parent's connections hang on it."""
        return [self, *(self._flights.inherited() if self._flights else [])]

    # The thread.

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except Exception:
            _LOG.exception("the fetcher's thread failed")
            raise
        finally:
            self._stop = self._ended = True
            for job in list(self._open):
                self._finish(job, cancelled())
            self._loop.close()
            # What came in after the loop's last round: with the thread stopped, jobs are only told so.
            while self._inbox:
                self._inbox.popleft()()

    async def _main(self) -> None:
        self._flights = Flights(self._limits, self._cache)
        self._stopped = self._loop.create_future()
        self._schedule()
        try:
            if not self._stop:
                await self._stopped
        finally:
            self._stop = True
            tasks = [job.task for job in self._open if job.task is not None]
            for job in list(self._open):
                self._finish(job, cancelled())
            await asyncio.gather(*tasks, return_exceptions=True)
            self._flights.close()

    def _halt(self) -> None:
        self._stop = True
        if self._flights is not None and not self._stopped.done():
            self._stopped.set_result(None)

    def _work(self) -> None:
        self._is_called = False
        while self._inbox:
            self._inbox.popleft()()
        self._schedule()

    def _accept(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            queue = job.queue
            if queue.closed or self._stop:
                job.ticket.settle(cancelled())
                continue
            if queue not in self._queues:
                self._queues.append(queue)
            self._open.add(job)
            if self._aim(job, job.course.url):
                queue.push(job)

    def _aim(self, job: Job, url: str) -> bool:
        try:
            address = WebAddress.parse(url)
        except PictureError as error:
            self._finish(job, error)
            return False
        except Exception as error:
            self._finish(job, faults.counted(error, url))
            return False
        job.course.url, job.host, job.port = address.url, address.host, address.port
        return True

    def _end(self, queue: StreamQueue, jobs: list[Job] | None) -> None:
        if jobs is None:
            queue.closed = True
            jobs = [job for job in self._open if job.queue is queue]
            self._queues = [other for other in self._queues if other is not queue]
        for job in jobs:
            self._finish(job, cancelled())

    def _schedule(self) -> None:
        self._resume()
        while self._flights is not None and self._flying < self._limits.concurrency and not self._stop:
            job = self._next_job()
            if job is None:
                return
            self._flying += 1
            job.queue.flying += 1
            job.task = self._loop.create_task(self._fly(self._flights, job))

    def _next_job(self) -> Job | None:
        for _ in range(len(self._queues)):
            queue = self._queues[0]
            while (job := queue.first()) is not None:
                queue.pop_first()
                if self._enters(job):
                    return job
            # Round robin: a queue that can start nothing gives its turn away.
            self._queues.append(self._queues.pop(0))
        return None

    def _enters(self, job: Job) -> bool:
        try:
            return self._hosts.enter(job.host, job)
        except PictureError as error:
            self._finish(job, error)
            return False

    def pause(self, job: Job) -> None:
        """For a queue: the rest of this job's body waits for room, and others may start meanwhile."""
        self._flying -= 1
        self._hosts.leave(job.host, "paused")
        # Soon, not now: libcurl is at work. By then the consumer may have moved on, before it saw that somebody waits.
        self.post(lambda: self._release(job.host))

    def _resume(self) -> None:
        for queue in self._queues:
            while (job := queue.resumable()) is not None:
                self._flying += 1
                self._hosts.rejoin(job.host)
                job.resume()

    async def _fly(self, flights: Flights, job: Job) -> None:
        host, job.trouble = job.host, ""
        step: Outcome | Again
        try:
            step = await flights.advance(job)
        except PictureError as error:
            step = error
        except asyncio.CancelledError:
            job.trouble = "cancelled"
            step = cancelled()
        except Exception as error:
            job.trouble = "internal"
            step = faults.counted(error, job.course.url)
        job.queue.flying -= 1
        job.task = None
        if job.is_paused:
            job.go_on = None
        else:
            self._flying -= 1
            self._hosts.leave(host, job.trouble)
        if isinstance(step, Again):
            self._come_back(job, step)
        else:
            self._finish(job, step)
        self._release(host)
        self._schedule()

    def _release(self, host: str) -> None:
        for waiting in self._hosts.freed(host, lambda job: job.open and job.queue.has_room(job)):
            if waiting.open:
                waiting.queue.push_back(waiting)

    def _come_back(self, job: Job, again: Again) -> None:
        job.shrink()
        if not job.open or not self._aim(job, again.url):
            return
        if again.pause:
            job.course.spent += again.pause
            job.timer = self._loop.call_later(again.pause, self._return, job)
        else:
            job.queue.push_back(job)

    def _return(self, job: Job) -> None:
        job.timer = None
        if job.open:
            job.queue.push_back(job)
            self._schedule()

    def _finish(self, job: Job, outcome: Outcome) -> None:
        if not job.open:
            return
        job.open = False
        self._open.discard(job)
        if job.timer is not None:
            job.timer.cancel()
        if job.task is not None:
            job.task.cancel()
        if not isinstance(outcome, FetchedPicture):
            job.shrink()
        if isinstance(outcome, PictureError):
            # A new one: the old one's traceback would keep the body alive for as long as somebody keeps the error.
            outcome = PictureError(outcome.reason, outcome.detail)
        job.ticket.settle(outcome)
