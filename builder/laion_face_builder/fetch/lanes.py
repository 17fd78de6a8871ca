"""A lane is one stream's queue in a fetcher: its jobs in order, and how many bytes it may hold.

Two threads meet here without a lock: `arrived`, the queues and every job belong to the fetcher's thread, `taken` and
`head` to the consumer's. Each is written by one side alone, and reading a number is atomic.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from hashlib import sha256
from queue import SimpleQueue

from laion_face_builder.fetch.policy import Course
from laion_face_builder.images.pictures import Picture

#: What a picture may weigh as long as none of the lane has come in.
_FIRST_GUESS = 100_000.0


@dataclass(frozen=True, slots=True)
class FetchedPicture:
    """A picture that was fetched, or kept from an earlier epoch (`is_kept`), and decodes."""

    picture: Picture
    is_kept: bool = False

    @property
    def data(self) -> bytes:
        """The bytes as they came."""
        return self.picture.data

    @property
    def status(self) -> str:
        """As a picture from a tar would have it."""
        return "ok"

    @property
    def width(self) -> int:
        """Pixels, as stored."""
        return self.picture.width

    @property
    def height(self) -> int:
        """Pixels, as stored."""
        return self.picture.height

    @property
    def orientation(self) -> int:
        """See `pictures.Picture`."""
        return self.picture.orientation

    @property
    def sha256(self) -> str:
        """Of the bytes, in hex; worked out when asked for."""
        return sha256(self.data).hexdigest()


Outcome = FetchedPicture | BaseException


class Ticket:
    """The promise of one picture. One thread at a time may wait for it."""

    __slots__ = ("_done", "_job", "_outcome", "_owner", "_waiter", "number")

    def __init__(self, job: Job) -> None:
        self._job: Job | None = job
        self.number = job.number
        self._done = job.lane.done if job.lane.by_arrival else None
        self._outcome: Outcome | None = None
        self._waiter: threading.Lock | None = None
        self._owner = job.lane.owner

    def done(self) -> bool:
        """Whether `result` would answer at once."""
        return self._outcome is not None

    def result(self, timeout: float | None = None) -> FetchedPicture:
        """Waits for the picture.

        Args:
            timeout: seconds; None waits as long as it takes, which the fetch's own bounds keep finite.

        Raises:
            PictureError: there is no picture; `reason` says why.
            concurrent.futures.CancelledError: the ticket was cancelled, or its fetcher closed.
            TimeoutError: not within `timeout`.
        """
        if self._outcome is None:
            self._wait(timeout)
        if isinstance(self._outcome, FetchedPicture):
            return self._outcome
        raise self._outcome or cancelled()

    def cancel(self) -> None:
        """Ends the fetch, if it has not ended; `result` then raises CancelledError."""
        job = self._job
        if job is not None and not self.done():
            job.lane.post_end([job])

    def settle(self, outcome: Outcome) -> None:
        """For the fetcher's thread: this is how it ended. The first one counts."""
        if self._outcome is None:
            self._job = None
            self._outcome = outcome
            if self._waiter is not None:
                self._waiter.release()
            if self._done is not None:
                self._done.put(self)

    def _wait(self, timeout: float | None) -> None:
        _refuse_in_child(self._owner)
        lock = threading.Lock()
        lock.acquire()
        # The order matters: `settle` looks for a waiter after it has set the outcome.
        self._waiter = lock
        if self._outcome is None and not lock.acquire(timeout=-1 if timeout is None else max(timeout, 0)):
            self._waiter = None
            raise TimeoutError(f"no picture within {timeout:g} s")


class Job:
    """One picture on its way."""

    __slots__ = ("course", "host", "lane", "number", "open", "port", "size", "task", "ticket", "timer", "trouble")

    def __init__(self, lane: Lane, number: int, url: str) -> None:
        self.lane, self.number = lane, number
        self.course = Course(url)
        self.host, self.port = "", 0
        self.trouble = ""
        self.size = 0
        self.open = True
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.ticket = Ticket(self)

    def __lt__(self, other: Job) -> bool:
        return self.number < other.number

    def grow(self, count: int) -> bool:
        """Counts bytes that arrive; False if the lane is full and somebody ahead of this job still has to come."""
        self.size += count
        self.lane.arrived += count
        return self.lane.held <= self.lane.max_bytes or self.number <= self.lane.head

    def shrink(self) -> None:
        """Gives back the bytes of a body that is not kept."""
        self.lane.arrived -= self.size
        self.size = 0


#: Ends some jobs of a lane, or (None) all of them and the lane.
_End = Callable[["Lane", "list[Job] | None"], None]
_Wake = Callable[[], None]


class Lane:
    """One stream's jobs in order.

    Args:
        end: ends jobs; may be called from any thread.
        wake: makes the fetcher look at its lanes again; may be called from any thread.
        max_bytes: of bodies that are arriving or wait to be taken. The job that is waited for is let through always.
        by_arrival: whether tickets are taken as they are done.
    """

    def __init__(self, end: _End, wake: _Wake, max_bytes: float = math.inf, *, by_arrival: bool = False) -> None:
        self._end, self._wake = end, wake
        self.by_arrival = by_arrival
        self.done: SimpleQueue[Ticket] = SimpleQueue()
        self.max_bytes = max_bytes
        self.owner = os.getpid()
        self.arrived = self.taken = self.flying = 0
        self.head = 0
        self.is_stalled = False
        self.expected = _FIRST_GUESS
        self._pending: deque[Job] = deque()
        self._returned: list[Job] = []
        self._numbers = 0
        self.closed = False

    @property
    def held(self) -> int:
        """Bytes that are arriving or wait to be taken."""
        return self.arrived - self.taken

    def make_job(self, url: str) -> Job:
        """The next job in order."""
        self._numbers += 1
        return Job(self, self._numbers, url)

    def take(self, ticket: Ticket) -> FetchedPicture:
        """Waits for the picture that is next and takes its bytes off the lane. Raises as `Ticket.result`."""
        self._let_through(ticket)
        found = ticket.result()
        self.taken += len(found.data)
        return found

    @property
    def has_done(self) -> bool:
        """Whether `next_done` would answer at once."""
        return not self.done.empty()

    def next_done(self, oldest: Ticket) -> Ticket:
        """Waits for any ticket that is done; each is given once. The oldest of all that were not is let through."""
        _refuse_in_child(self.owner)
        self._let_through(oldest)
        return self.done.get()

    def _let_through(self, ticket: Ticket) -> None:
        if not ticket.done():
            self.head = ticket.number
        if self.is_stalled:
            self._wake()

    def post_end(self, jobs: list[Job] | None) -> None:
        """Ends these jobs, or (None) all there are and the lane."""
        self._end(self, jobs)

    def push(self, job: Job) -> None:
        """A new job, behind all others."""
        self._pending.append(job)

    def push_back(self, job: Job) -> None:
        """A job that was taken out and could not start yet: it comes before all later ones."""
        heapq.heappush(self._returned, job)

    def first(self) -> Job | None:
        """The job that is next to start, if there is room for what it brings; it stays in the lane."""
        for queue in (self._returned, self._pending):
            while queue and not queue[0].open:
                self._pop(queue)
        queue = self._earlier()
        if not queue:
            return None
        if not self.has_room(queue[0]):
            self.is_stalled = True
            # Looked at once more: the consumer may have moved on before it could see that we stall.
            if not self.has_room(queue[0]):
                return None
        self.is_stalled = False
        return queue[0]

    def pop_first(self) -> Job:
        """Takes out what `first` gave."""
        return self._pop(self._earlier())

    def has_room(self, job: Job) -> bool:
        """Whether what is held, what is still to come in and this job's body would fit."""
        expected = (self.flying + 1) * self.expected
        return self.held + expected <= self.max_bytes or job.number <= self.head

    def learn(self, size: int) -> None:
        """The size of a body that came in whole."""
        self.expected += (size - self.expected) / 32

    def _earlier(self) -> list[Job] | deque[Job]:
        if self._returned and (not self._pending or self._returned[0] < self._pending[0]):
            return self._returned
        return self._pending

    @staticmethod
    def _pop(queue: list[Job] | deque[Job]) -> Job:
        return heapq.heappop(queue) if isinstance(queue, list) else queue.popleft()


def cancelled() -> CancelledError:
    """How a fetch ends that nobody wants any more."""
    return CancelledError("the fetch was cancelled, or its fetcher closed")


def _refuse_in_child(owner: int) -> None:
    if os.getpid() != owner:
        raise RuntimeError("this picture is being fetched by the process that this one was forked from")
