"""How the open streams of one fetcher share its bounds: each has its part, and all together no more than the whole."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laion_face_builder.fetch.stream_queue import StreamQueue


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
