"""Places in flight: how many jobs are under way, and which of them are silent.

Hosts that have been silent for a while take no place. Of real addresses one in twenty leads to a host that says nothing
until the time is over, fifty times as long as others take. With a place each they would have most of all places after a
while, and what could be had would wait for them.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from laion_face_builder.fetch.job import Job

#: A job of which nothing has arrived within so many seconds is set aside.
_SILENT_SECONDS = 2.0
#: So many may be set aside, for each place.
_ASIDE = 3


class Places:
    """Counts the jobs under way. For the running event loop's thread alone.

    Args:
        most: places.
        connections: that there may be in all; bounds how many are set aside.
        wake: called when places may have become free by the clock alone.
    """

    def __init__(self, most: int, connections: int, wake: Callable[[], None]) -> None:
        self._most, self._wake = most, wake
        self._most_aside = max(0, min(_ASIDE * most, (connections - most) // 2))
        self._loop = asyncio.get_running_loop()
        #: When each took its place, in that order; and those that have been looked at since and do arrive.
        self._new: OrderedDict[Job, float] = OrderedDict()
        self._arriving: set[Job] = set()
        self._aside: set[Job] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how many jobs are under way, with a place or without."""
        return len(self._new) + len(self._arriving) + len(self._aside)

    @property
    def has_free(self) -> bool:
        """Whether a job may start."""
        if len(self._new) + len(self._arriving) >= self._most:
            self._look()
        return len(self._new) + len(self._arriving) < self._most

    def take(self, job: Job) -> None:
        """Give `job` a place."""
        self._new[job] = self._loop.time()

    def leave(self, job: Job) -> None:
        """Take the place back; the job is not under way any more."""
        self._new.pop(job, None)
        self._arriving.discard(job)
        self._aside.discard(job)

    def close(self) -> None:
        """End the clock."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        """Set those aside that have been silent for too long."""
        now = self._loop.time()
        while self._new and len(self._aside) < self._most_aside:
            job, since = next(iter(self._new.items()))
            if now - since < _SILENT_SECONDS:
                if self._timer is None:
                    self._timer = self._loop.call_at(since + _SILENT_SECONDS, self._on_time)
                return
            del self._new[job]
            (self._arriving if job.size else self._aside).add(job)

    def _on_time(self) -> None:
        self._timer = None
        self._wake()
