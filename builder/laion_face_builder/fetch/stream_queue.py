"""One stream's queue in a fetcher: its jobs in order, and how many bytes it may hold.

Two threads meet here without a lock: `arrived`, the queues and every job belong to the fetcher's thread, `taken` and
`head` to the consumer's. Each is written by one side alone, and reading a number is atomic.

The open streams of one fetcher share its bounds: each has its part, and all together no more than the whole.
"""

from __future__ import annotations

import heapq
import math
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from laion_face_builder.fetch.job import Job, JobState, Ticket, refuse_in_child
from laion_face_builder.images.pictures import Picture

if TYPE_CHECKING:
    pass


class OpenQueues:
    """The queues of the streams that are open now. Any thread may read; the list is replaced whole, under a lock."""

    def __init__(self) -> None:
        self._queues: tuple[StreamQueue, ...] = ()
        self._lock = threading.RLock()  # a stream may be dropped wherever Python collects garbage

    def add(self, queue: StreamQueue) -> None:
        """Add a queue: from now on the others leave it its part."""
        with self._lock:
            self._queues = (*self._queues, queue)

    def remove(self, queue: StreamQueue) -> None:
        """Remove a queue, which leaves its part to the others."""
        with self._lock:
            self._queues = tuple(other for other in self._queues if other is not queue)

    def part_of(self, amount: float) -> float:
        """Return what one queue may have of an amount that is for all."""
        return amount / max(1, len(self._queues))

    @property
    def held(self) -> int:
        """Bytes of all queues that are arriving or wait to be taken."""
        return sum(queue.held for queue in self._queues)

    @property
    def expected(self) -> float:
        """Those bytes, with what is still to come of the jobs in flight."""
        return sum(queue.held + queue.flying * queue.expected for queue in self._queues)


#: What a picture may weigh as long as none of the queue has come in.
_FIRST_GUESS = 100_000.0
#: Ends some jobs of a queue, or (None) all of them and the queue.
_End = Callable[["StreamQueue", "list[Job] | None"], None]
_Wake = Callable[[], None]
#: Takes its place in flight from a job whose body waits for room.
_Wait = Callable[[Job], None]


class StreamQueue:
    """One stream's jobs in order.

    Args:
        end: ends jobs; may be called from any thread.
        wake: makes the fetcher look at its queues again; may be called from any thread.
        wait: takes its place in flight from a job whose body waits for room.
        max_bytes: of bodies that are arriving or wait to be taken. The job that is waited for is let through always.
        by_arrival: whether tickets are taken as they are done.
        among: the open queues that share `max_bytes` with this one.
    """

    def __init__(
        self,
        end: _End,
        wake: _Wake,
        wait: _Wait,
        max_bytes: float = math.inf,
        *,
        by_arrival: bool = False,
        among: OpenQueues | None = None,
    ) -> None:
        self._end, self._wake, self._wait = end, wake, wait
        self._among = OpenQueues() if among is None else among
        self.by_arrival = by_arrival
        self.done: SimpleQueue[Ticket] = SimpleQueue()
        self._next_done: Ticket | None = None
        self.max_bytes = max_bytes
        self.owner = os.getpid()
        self.arrived = self.taken = self.flying = 0
        self.head = 0
        self.is_stalled = False
        self.expected = _FIRST_GUESS
        self._pending: deque[Job] = deque()
        self._returned: list[Job] = []
        self._waiting: list[Job] = []
        self._numbers = 0
        self.closed = False

    @property
    def held(self) -> int:
        """Bytes that are arriving or wait to be taken."""
        return self.arrived - self.taken

    def make_job(self, url: str) -> Job:
        """Make the next job in order."""
        self._numbers += 1
        return Job(self, self._numbers, url)

    def take(self, ticket: Ticket) -> Picture:
        """Wait for the picture that is next, and take its bytes off the queue. Raises as `Ticket.result`."""
        self._let_through(ticket)
        found = ticket.result()
        self.taken += len(found.data)
        return found

    @property
    def has_done(self) -> bool:
        """Whether `next_done` would answer at once."""
        return self._next_done is not None or not self.done.empty()

    def next_done(self, oldest: Ticket) -> Ticket:
        """Wait for any ticket that is done; each is given once. `oldest`, the first not given, is let through."""
        refuse_in_child(self.owner)
        self._let_through(oldest)
        found, self._next_done = self._next_done, None
        return found or self.done.get()

    def is_done_within(self, ticket: Ticket, seconds: float) -> bool:
        """Say whether a ticket is done, now or after a wait; its job is let through."""
        self._let_through(ticket)
        return ticket.is_done_within(seconds)

    def has_done_within(self, oldest: Ticket, seconds: float) -> bool:
        """Say whether `next_done` would answer at once, now or after a wait."""
        refuse_in_child(self.owner)
        self._let_through(oldest)
        if self._next_done is None:
            with suppress(Empty):
                self._next_done = self.done.get(timeout=seconds)
        return self._next_done is not None

    def _let_through(self, ticket: Ticket) -> None:
        if not ticket.done():
            self.head = ticket.number
        if self.is_stalled or self._waiting:
            self._wake()

    def post_end(self, jobs: list[Job] | None) -> None:
        """End these jobs, or (None) all there are and the queue."""
        self._end(self, jobs)

    def push(self, job: Job) -> None:
        """Add a new job, behind all others."""
        self._pending.append(job)

    def push_back(self, job: Job) -> None:
        """Put back a job that was taken out and could not start yet: it comes before all later ones."""
        heapq.heappush(self._returned, job)

    def wait_for_room(self, job: Job) -> None:
        """Have a job wait whose body needs room."""
        heapq.heappush(self._waiting, job)
        self._wait(job)

    def next_with_room(self) -> Job | None:
        """Take out the first job whose body waited, if there is room for more of it."""
        while self._waiting and self._waiting[0].state is not JobState.WAITING:
            heapq.heappop(self._waiting)
        if self._waiting and (not self.is_over_full or self._waiting[0].number <= self.head):
            return heapq.heappop(self._waiting)
        return None

    @property
    def is_empty(self) -> bool:
        """Whether no job waits for its turn."""
        return not self._pending and not self._returned

    def first(self) -> Job | None:
        """Return the job that is next to start, if there is room for its body; it stays in the queue."""
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
        """Take out the job that `first` returned."""
        return self._pop(self._earlier())

    def has_room(self, job: Job) -> bool:
        """Say whether what is held, what is still to come in and this job's body would fit."""
        if job.number <= self.head:
            return True
        here = self.held + (self.flying + 1) * self.expected
        return here <= self._among.part_of(self.max_bytes) and self._among.expected + self.expected <= self.max_bytes

    @property
    def is_over_full(self) -> bool:
        """Whether more is held than there is room for, here or in all queues that share it."""
        return max(self.held, self._among.held) > self.max_bytes

    def learn(self, size: int) -> None:
        """Let the size of a body that has ended adjust the size that is expected of the next."""
        self.expected += (size - self.expected) / 32

    def _earlier(self) -> list[Job] | deque[Job]:
        if self._returned and (not self._pending or self._returned[0] < self._pending[0]):
            return self._returned
        return self._pending

    @staticmethod
    def _pop(queue: list[Job] | deque[Job]) -> Job:
        return heapq.heappop(queue) if isinstance(queue, list) else queue.popleft()
