"""Decide which fetches may start, and when.

A job starts when four things are there at once: its turn in its stream's queue, room in that stream's buffer, a free
place in flight, and a connection that its host may have. Nothing is held while waiting for the rest, so no two streams
can block each other, and no host that is slow, silent or refuses stands in front of another. Errands to sites' rules
(`sites`) are jobs too, with a queue and places of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from laion_face_builder.errors import NetworkOutage, PictureError
from laion_face_builder.fetch import open_files, policy
from laion_face_builder.fetch.addresses import WebAddress
from laion_face_builder.fetch.errand import Errand
from laion_face_builder.fetch.flight import Flights, Landing
from laion_face_builder.fetch.hosts import Contact, Hosts
from laion_face_builder.fetch.job import Ending, Job, JobState, cancelled
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.machine import Machine
from laion_face_builder.fetch.network import Vigil
from laion_face_builder.fetch.places import Places
from laion_face_builder.fetch.policy import Retry, Throttled
from laion_face_builder.fetch.sites import Sites
from laion_face_builder.fetch.stream_queue import StreamQueue
from laion_face_builder.images.pictures import Picture

#: Names that are looked up at once.
_LOOKUPS = 512


class Scheduler:
    """Takes jobs from queued to settled (`JobState`). For the running event loop's thread alone.

    Args:
        limits: the bounds.
        flights: takes a job a step further.
        machine: shares the bounds of each host with other processes.
    """

    def __init__(self, limits: FetchLimits, flights: Flights, machine: Machine) -> None:
        self._limits, self._flights, options = limits, flights, limits.options
        self._loop = asyncio.get_running_loop()
        self._queues: list[StreamQueue] = []
        self._open: set[Job] = set()
        self._hosts: Hosts[Job] = Hosts(options.per_host, options.timeout, limits.longest_wait, machine)
        self._nameless: dict[str, list[Job]] = {}
        self._lookups: set[asyncio.Task[None]] = set()
        self._vigil = Vigil(self, flights.reaches, options.outage_patience)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._places = Places(options.concurrency, limits.kept_connections, self.schedule)
        self._sites = Sites(limits, self._send, self._resume, self._loop.time)
        self._errands = Places(open_files.errands(limits), limits.kept_connections, self.schedule)
        self._freed: set[str] = set()
        #: Jobs under way that gave up their place in flight, and their host's connection.
        self._placeless: set[Job] = set()
        self._is_stopped = False

    def accept(self, jobs: Sequence[Job]) -> None:
        """Take new jobs; `schedule` starts them."""
        for job in jobs:
            queue = job.queue
            if queue.closed or self._is_stopped:
                job.ticket.settle(cancelled())
                continue
            if queue not in self._queues:
                self._queues.append(queue)
            self._open.add(job)
            if self._aim(job, job.progress.url):
                queue.push(job)
                if not self._flights.has_cache:
                    self._sites.foresee(job)

    def _send(self, errand: Errand) -> None:
        self._open.add(errand)
        self.queue(errand)

    def _resume(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.queue(job)
        self._loop.call_soon(self.schedule)  # whatever is being done now, it may have looked at the queues already

    def end(self, queue: StreamQueue, jobs: list[Job] | None) -> None:
        """End jobs of a queue; with None all of them, and the queue."""
        if jobs is None:
            queue.closed = True
            jobs = [job for job in self._open if job.queue is queue]
            self._queues = [other for other in self._queues if other is not queue]
        for job in jobs:
            self._settle(job, cancelled())

    async def stop(self) -> None:
        """End all jobs and wait until none is in flight."""
        self._is_stopped = True
        self._vigil.close()
        self._places.close()
        self._errands.close()
        tasks = [job.task for job in self._open if job.task is not None]
        for lookup in self._lookups:
            lookup.cancel()
        for job in list(self._open):
            self._settle(job, cancelled())
        for timer in self._timers.values():
            timer.cancel()
        await asyncio.gather(*tasks, *self._lookups, return_exceptions=True)

    def wait_for_room(self, job: Job) -> None:
        """Let others have the place of a job whose body waits for room, and its connection to the host."""
        self._placeless.add(job)
        self._places.leave(job)
        self._hosts[job.host].leave(Contact.NONE, 0.0, self._loop.time())
        self._freed.add(job.host)

    def schedule(self) -> None:
        """Start every job that may start now."""
        self._make_way()
        while self._may_start():
            job = self._next_job()
            if job is None and self._may_start() and self._vigil.next_stalled():
                job = self._next_job()
            if job is None:
                break
            self._places_of(job).take(job)
            job.queue.flying += 1
            job.state, job.has_taken_off = JobState.FLYING, False
            job.task = self._loop.create_task(self._fly(job))
        if not self._under_way():
            self._vigil.nothing_under_way()

    def _under_way(self) -> int:
        return len(self._places) + len(self._errands) + len(self._lookups)

    def _places_of(self, job: Job) -> Places:
        return self._errands if isinstance(job, Errand) else self._places

    def _may_start(self) -> bool:
        return len(self._lookups) < _LOOKUPS and not self._is_stopped and self._vigil.may_start(self._under_way)

    def _make_way(self) -> None:
        while self._freed:
            self._release(self._freed.pop())
        for queue in self._queues:
            while (job := queue.next_with_room()) is not None:
                self._place(job)
                job.go_on()

    def _place(self, job: Job) -> None:
        # The connection is open still: no bound can take it away.
        self._placeless.discard(job)
        self._places.take(job)
        self._hosts[job.host].busy += 1

    def _next_job(self) -> Job | None:
        return self._next_errand() or self._next_picture() or self._next_errand()  # pictures may have needed it

    def _next_errand(self) -> Job | None:
        errands = self._sites.errands
        return self._first_of(errands) if not errands.is_empty and self._errands.has_free else None

    def _next_picture(self) -> Job | None:
        if not self._places.has_free or self._sites.is_crowded:
            return None
        for _ in range(len(self._queues)):
            if (job := self._first_of(self._queues[0])) is not None:
                return job
            # Round robin: a queue that can start nothing gives its turn away.
            self._queues.append(self._queues.pop(0))
        return None

    def _first_of(self, queue: StreamQueue) -> Job | None:
        while (job := queue.first()) is not None:
            queue.pop_first()
            if isinstance(job, Errand) and not job.is_wanted:
                self._settle(job, cancelled())
            elif self._enters(job):
                return job
            elif self._sites.is_crowded and not isinstance(job, Errand):
                break
        return None

    def _is_cached(self, job: Job) -> bool:
        """Say whether the cache is the job's next step, so that no host is asked."""
        return self._flights.has_cache and not job.progress.has_begun and not isinstance(job, Errand)

    def _enters(self, job: Job) -> bool:
        if self._is_cached(job):
            return True  # kept pictures come whatever their host does
        try:
            if not self._sites.allows(job):
                return False
        except PictureError as error:
            self._settle(job, error)
            return False
        # Who asks for an answer that has just come must not get ahead of those who wait for it.
        if not job.has_address and (job.host in self._nameless or not self._flights.knows(job.host)):
            self._look_up(job)
            return False
        try:
            is_in = self._hosts[job.host].enter(job, self._loop.time(), is_back=job.progress.is_back)
        except PictureError as error:
            self._settle(job, error)
            return False
        if not is_in:
            job.state = JobState.HELD
            self._watch(job.host)
        return is_in

    def _look_up(self, job: Job) -> None:
        """Have the job wait for its host's address. That takes no place in flight, and none of its time."""
        job.state = JobState.HELD
        waiting = self._nameless.setdefault(job.host, [])
        waiting.append(job)
        if len(waiting) == 1:
            task = self._loop.create_task(self._resolve(job.host, job.port))
            self._lookups.add(task)
            task.add_done_callback(self._lookups.discard)

    async def _resolve(self, host: str, port: int) -> None:
        began = self._loop.time()
        error = await self._flights.look_up(host, port)
        self._lookups.discard(asyncio.current_task())
        jobs = self._nameless.pop(host)
        for job in () if self._vigil.keeps_nameless(jobs, error, began) else jobs:
            if error is not None:
                self._settle(job, error)
            elif job.open:
                job.has_address = True
                self.queue(job)
        self.schedule()

    async def _fly(self, job: Job) -> None:
        job.has_taken_off = True
        host = job.host
        is_cached = self._is_cached(job)
        try:
            if not job.open:
                raise asyncio.CancelledError
            landing = await (self._flights.look_in_cache(job) if is_cached else self._flights.exchange(job))
        except asyncio.CancelledError:
            landing = Landing(cancelled())
        except Exception as error:
            # Nothing that one picture brings about ends a stream, or leaves somebody waiting for ever.
            landing = Landing(policy.counted(error, job.progress.url))
        job.queue.flying -= 1
        job.task = None
        self._land(job, landing, None if is_cached else host)
        if not self._vigil.keeps(job, landing):
            self.go_on(job, landing.step)
        if not is_cached:
            self._release(host)
        self.schedule()

    def _land(self, job: Job, landing: Landing, host: str | None) -> None:
        if job in self._placeless:
            self._placeless.discard(job)
            return
        self._places_of(job).leave(job)
        if host is not None:
            self._hosts[host].leave(
                Contact.NONE if self._vigil.is_out else landing.contact,
                landing.began,
                self._loop.time(),
                reason=landing.reason,
                wait=landing.wait,
            )

    def go_on(self, job: Job, step: Ending | Retry | Throttled) -> None:
        """Settle a job, or have it go on where its last step says."""
        if not isinstance(step, (Retry, Throttled)):
            self._settle(job, step)
            return
        job.shrink()
        if not job.open or not self._aim(job, step.url if isinstance(step, Retry) else job.progress.url):
            return
        if isinstance(step, Retry) and step.pause:
            job.progress.spent += step.pause
            job.state = JobState.PAUSED
            job.timer = self._loop.call_later(step.pause, self._return, job)
        else:
            self.queue(job)

    def forgive_hosts(self) -> None:
        """Forget the silence of all hosts, which was not theirs."""
        for host in self._hosts:
            host.forgive()

    def give_up(self, error: Callable[[], NetworkOutage]) -> None:
        """End all jobs there are; each gets an error of its own."""
        for job in list(self._open):
            self._settle(job, error())

    def _return(self, job: Job) -> None:
        job.timer = None
        if job.open:
            self.queue(job)
            self.schedule()

    def queue(self, job: Job) -> None:
        """Put a job that was taken out back into its stream's queue."""
        job.state = JobState.QUEUED
        job.queue.push_back(job)

    def _release(self, name: str) -> None:
        """Queue those jobs again that waited for the host, as many as may start."""
        for job in self._hosts[name].freed(self._loop.time(), lambda job: job.open and job.queue.has_room(job)):
            if job.open:
                self.queue(job)
        self._watch(name)

    def _watch(self, name: str) -> None:
        """Set a timer for a host's queue that moves by the clock."""
        when, timer = self._hosts[name].moves_at(), self._timers.get(name)
        if when is not None and (timer is None or when < timer.when()):
            if timer is not None:
                timer.cancel()
            self._timers[name] = self._loop.call_at(when, partial(self._on_time, name))

    def _on_time(self, name: str) -> None:
        del self._timers[name]
        self._release(name)
        self.schedule()

    def _aim(self, job: Job, url: str) -> bool:
        job.has_address = False
        try:
            address = WebAddress.parse(url)
        except PictureError as error:
            self._settle(job, error)
            return False
        except Exception as error:
            self._settle(job, policy.counted(error, url))
            return False
        job.progress.url, job.host, job.port = address.url, address.host, address.port
        return True

    def _settle(self, job: Job, outcome: Ending) -> None:
        if not job.open:
            return
        job.state = JobState.ENDED
        self._open.discard(job)
        if job.timer is not None:
            job.timer.cancel()
        # A task that is cancelled before its first step never runs, and would keep the job's place for ever.
        if job.task is not None and job.has_taken_off:
            job.task.cancel()
        if not isinstance(outcome, Picture):
            job.shrink()
        if isinstance(outcome, PictureError):
            # A new one: the old one's traceback would keep the body alive for as long as somebody keeps the error.
            outcome = PictureError(outcome.reason, outcome.detail)
        job.finish(outcome)
