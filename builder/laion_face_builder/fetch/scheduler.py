"""Who may start when.

A job starts when four things are there at once: its turn in its stream's queue, room in that stream's buffer, a free
place in flight, and a connection that its host may have. Nothing is held while waiting for the rest, so no two streams
can block each other, and no host that is slow, silent or refuses stands in front of another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch import guard
from laion_face_builder.fetch.flight import Flights, Landing
from laion_face_builder.fetch.hosts import Hosts
from laion_face_builder.fetch.job import FetchedPicture, Job, JobState, Outcome, cancelled
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.policy import Again, Later
from laion_face_builder.fetch.stream_queue import StreamQueue

#: Names that are looked up at once.
_LOOKUPS = 512

_LOG = logging.getLogger("laion_face")


class Scheduler:
    """Takes jobs from queued to settled (`JobState`). For the running event loop's thread alone.

    Args:
        limits: the bounds.
        flights: take a job a step further.
    """

    def __init__(self, limits: FetchLimits, flights: Flights) -> None:
        self._limits, self._flights = limits, flights
        self._loop = asyncio.get_running_loop()
        self._queues: list[StreamQueue] = []
        self._open: set[Job] = set()
        self._hosts: Hosts[Job] = Hosts(limits.per_host, limits.timeout, limits.longest_wait)
        self._nameless: dict[str, list[Job]] = {}
        self._lookups: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._flying = 0
        self._is_stopped = False

    def accept(self, jobs: Sequence[Job]) -> None:
        """Takes new jobs; `schedule` starts them."""
        for job in jobs:
            queue = job.queue
            if queue.closed or self._is_stopped:
                job.ticket.settle(cancelled())
                continue
            if queue not in self._queues:
                self._queues.append(queue)
            self._open.add(job)
            if self._aim(job, job.course.url):
                queue.push(job)

    def end(self, queue: StreamQueue, jobs: list[Job] | None) -> None:
        """Ends jobs of a queue; with None all of them, and the queue."""
        if jobs is None:
            queue.closed = True
            jobs = [job for job in self._open if job.queue is queue]
            self._queues = [other for other in self._queues if other is not queue]
        for job in jobs:
            self._settle(job, cancelled())

    async def stop(self) -> None:
        """Ends all jobs and waits until none is in flight."""
        self._is_stopped = True
        tasks = [job.task for job in self._open if job.task is not None]
        for lookup in self._lookups:
            lookup.cancel()
        for job in list(self._open):
            self._settle(job, cancelled())
        for timer in self._timers.values():
            timer.cancel()
        await asyncio.gather(*tasks, *self._lookups, return_exceptions=True)

    def schedule(self) -> None:
        """Starts what may start."""
        while self._flying < self._limits.concurrency and len(self._lookups) < _LOOKUPS and not self._is_stopped:
            job = self._next_job()
            if job is None:
                return
            self._flying += 1
            job.queue.flying += 1
            job.state = JobState.FLYING
            job.task = self._loop.create_task(self._fly(job))

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
        if self._flights.has_cache and not job.course.has_begun:
            return True  # kept pictures come whatever their host does
        if not job.has_address and not self._flights.knows(job.host):
            self._look_up(job)
            return False
        try:
            is_in = self._hosts[job.host].enter(job, self._loop.time(), is_back=job.course.is_back)
        except PictureError as error:
            self._settle(job, error)
            return False
        if not is_in:
            job.state = JobState.HELD
            self._watch(job.host)
        return is_in

    def _look_up(self, job: Job) -> None:
        """Has the job wait for its host's address. That takes no place in flight, and none of its time."""
        job.state = JobState.HELD
        waiting = self._nameless.setdefault(job.host, [])
        waiting.append(job)
        if len(waiting) == 1:
            task = self._loop.create_task(self._resolve(job.host, job.port))
            self._lookups.add(task)
            task.add_done_callback(self._lookups.discard)

    async def _resolve(self, host: str, port: int) -> None:
        error = await self._flights.look_up(host, port)
        self._lookups.discard(asyncio.current_task())
        for job in self._nameless.pop(host):
            if error is not None:
                self._settle(job, error)
            elif job.open:
                job.has_address = True
                self._queue(job)
        self.schedule()

    async def _fly(self, job: Job) -> None:
        host = job.host
        is_cached = self._flights.has_cache and not job.course.has_begun
        try:
            landing = await (self._flights.look_in_cache(job) if is_cached else self._flights.exchange(job))
        except asyncio.CancelledError:
            landing = Landing(cancelled())
        except Exception as error:
            # Nothing that one picture brings about ends a stream, or leaves somebody waiting for ever.
            _LOG.warning("fetching %s: %r", job.course.url, error, exc_info=True)
            landing = Landing(PictureError("other", f"{type(error).__name__}: {error}"))
        self._flying -= 1
        job.queue.flying -= 1
        job.task = None
        if not is_cached:
            self._hosts[host].leave(
                landing.contact, landing.began, self._loop.time(), reason=landing.reason, wait=landing.wait
            )
        self._go_on(job, landing.step)
        if not is_cached:
            self._release(host)
        self.schedule()

    def _go_on(self, job: Job, step: Outcome | Again | Later) -> None:
        if not isinstance(step, (Again, Later)):
            self._settle(job, step)
            return
        job.shrink()
        if not job.open or not self._aim(job, step.url if isinstance(step, Again) else job.course.url):
            return
        if isinstance(step, Again) and step.pause:
            job.course.spent += step.pause
            job.state = JobState.PAUSED
            job.timer = self._loop.call_later(step.pause, self._return, job)
        else:
            self._queue(job)

    def _return(self, job: Job) -> None:
        job.timer = None
        if job.open:
            self._queue(job)
            self.schedule()

    def _queue(self, job: Job) -> None:
        job.state = JobState.QUEUED
        job.queue.push_back(job)

    def _release(self, name: str) -> None:
        """Lets those go on that waited for the host, as many as may."""
        for job in self._hosts[name].freed(self._loop.time(), lambda job: job.open and job.queue.has_room(job)):
            if job.open:
                self._queue(job)
        self._watch(name)

    def _watch(self, name: str) -> None:
        """Sees to it that a queue which moves by the clock is looked at in time."""
        when = self._hosts[name].moves_at()
        if when is not None and name not in self._timers:
            self._timers[name] = self._loop.call_at(when, partial(self._on_time, name))

    def _on_time(self, name: str) -> None:
        del self._timers[name]
        self._release(name)
        self.schedule()

    def _aim(self, job: Job, url: str) -> bool:
        job.course.url, job.has_address = url, False
        try:
            _, job.host, job.port = guard.split_url(url)
        except PictureError as error:
            self._settle(job, error)
            return False
        return True

    def _settle(self, job: Job, outcome: Outcome) -> None:
        if not job.open:
            return
        job.state = JobState.ENDED
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
