"""One picture on its way (`Job`), and the future that its consumer waits for (`Ticket`).

A job belongs to the fetcher's thread, its ticket to whoever waits: `settle` is where they meet, without a lock but for
the one that a waiter brings along.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING

from laion_face_builder.fetch.policy import FetchProgress
from laion_face_builder.fetch.site_rules import SiteRules
from laion_face_builder.images.pictures import Picture

if TYPE_CHECKING:
    from laion_face_builder.fetch.stream_queue import StreamQueue


Outcome = Picture | BaseException
#: How a job ends: with a picture, or (an errand) with a site's rules.
Ending = Outcome | SiteRules


class Ticket:
    """The future of one picture. One thread at a time may wait for it."""

    __slots__ = ("_done", "_job", "_outcome", "_owner", "_waiter", "number")

    def __init__(self, job: Job) -> None:
        self._job: Job | None = job
        self.number = job.number
        self._done = job.queue.done if job.queue.by_arrival else None
        self._outcome: Outcome | None = None
        self._waiter: threading.Lock | None = None
        self._owner = job.queue.owner

    def done(self) -> bool:
        """Say whether `result` would answer at once."""
        return self._outcome is not None

    def result(self, timeout: float | None = None) -> Picture:
        """Wait for the picture, and return it.

        Args:
            timeout: seconds; None waits as long as it takes, which the fetch's own bounds keep finite.

        Raises:
            PictureError: there is no picture; `reason` says why.
            concurrent.futures.CancelledError: the ticket was cancelled, or its fetcher closed.
            TimeoutError: not within `timeout`.
        """
        if self._outcome is None:
            self._wait(timeout)
        if isinstance(self._outcome, Picture):
            return self._outcome
        raise self._outcome or cancelled()

    def is_done_within(self, seconds: float) -> bool:
        """Say whether `result` would answer at once, now or after a wait."""
        with suppress(TimeoutError):
            if self._outcome is None:
                self._wait(seconds)
        return self._outcome is not None

    def cancel(self) -> None:
        """End the fetch, if it has not ended; `result` then raises CancelledError."""
        job = self._job
        if job is not None and not self.done():
            job.queue.post_end([job])

    def settle(self, outcome: Outcome) -> None:
        """Set how the fetch ended, from the fetcher's thread. Only the first call counts."""
        if self._outcome is None:
            self._job = None
            self._outcome = outcome
            if self._waiter is not None:
                self._waiter.release()
            if self._done is not None:
                self._done.put(self)

    def _wait(self, timeout: float | None) -> None:
        refuse_in_child(self._owner)
        lock = threading.Lock()
        lock.acquire()
        # The order matters: `settle` looks for a waiter after it has set the outcome.
        self._waiter = lock
        if self._outcome is None and not lock.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
            self._waiter = None
            raise TimeoutError(f"no picture within {timeout:g} s")


class JobState(Enum):
    """Where a job stands."""

    QUEUED = "in its stream's queue"
    HELD = "in its host's queue"
    FLYING = "under way"
    STALLED = "kept back: nobody was heard since it was asked"
    WAITING = "its body waits for room: it takes no place in flight and none of its host's connections"
    PAUSED = "between two tries"
    ENDED = "settled"


class Job:
    """One picture on its way from its stream's queue to its ticket."""

    __slots__ = (
        *("_go_on", "_waits_since", "has_address", "has_taken_off", "host", "number", "port", "progress", "queue"),
        *("size", "state", "task", "ticket", "timer", "waited"),
    )

    def __init__(self, queue: StreamQueue, number: int, url: str) -> None:
        self.queue, self.number = queue, number
        self.progress = FetchProgress(url)
        self.host, self.port = "", 0
        self.has_address = False
        #: Whether its task, if there is one, has made its first step.
        self.has_taken_off = False
        self.size = 0
        self.state = JobState.QUEUED
        #: Seconds of the exchange that is under way in which its body waited for room.
        self.waited = 0.0
        self._waits_since = 0.0
        self._go_on: Callable[[], None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.ticket = Ticket(self)

    def __lt__(self, other: Job) -> bool:
        return self.number < other.number

    @property
    def open(self) -> bool:
        """Whether the job is not settled yet."""
        return self.state is not JobState.ENDED

    def grow(self, count: int) -> bool:
        """Count bytes that arrive; return False if the buffer is full and a job ahead of this one still has to come."""
        self.size += count
        self.queue.arrived += count
        return self.number <= self.queue.head or not self.queue.is_over_full

    def hold(self, go_on: Callable[[], None]) -> None:
        """Wait for room, after `grow` returned False: nothing more arrives until `go_on` is called."""
        self._go_on = go_on
        if self.state is JobState.FLYING:
            self.state = JobState.WAITING
            self._waits_since = time.monotonic()
            self.queue.wait_for_room(self)

    def go_on(self) -> None:
        """Resume what `hold` stopped."""
        self.state = JobState.FLYING
        self.waited += time.monotonic() - self._waits_since
        if self._go_on is not None:
            self._go_on()

    def finish(self, ending: Ending) -> None:
        """Tell whoever waits how the job ended."""
        if not isinstance(ending, SiteRules):
            self.ticket.settle(ending)

    def shrink(self) -> None:
        """Give back the bytes of a body that is not kept."""
        self.queue.arrived -= self.size
        self.size = 0


def cancelled() -> CancelledError:
    """Return the error of a fetch that nobody wants any more."""
    return CancelledError("the fetch was cancelled, or its fetcher closed")


def refuse_in_child(owner: int) -> None:
    """Raise RuntimeError unless this is the process `owner`, which does the fetching."""
    if os.getpid() != owner:
        raise RuntimeError("this picture is being fetched by the process that this one was forked from")
