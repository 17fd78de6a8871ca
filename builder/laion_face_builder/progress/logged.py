"""Progress where no bar can be drawn, as in the log of a job of cron, Slurm or Docker: a line a minute.

A line says where the job stands, how much is done, how fast it went in the last minutes, and how long the rest takes
at that pace. What is done within a minute says nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from laion_face_builder.files import human_size
from laion_face_builder.forecast import duration
from laion_face_builder.log import logger
from laion_face_builder.progress.base import Bar

#: Seconds from one line to the next, and the lines over which the pace is taken.
INTERVAL, _LINES = 60.0, 10


class LoggedBar(Bar):
    """A bar that logs a line now and then. Use `progress.bar`, which knows whether that is what is wanted.

    Args:
        standing: where the whole job stands, such as "part 3 of 13", or "".
        text: what is done.
        total: how much there is to do, None if that is not known.
        unit: what is counted; "B" for bytes.
        done: what was done before.
        clock: seconds since any moment.
    """

    def __init__(
        self,
        standing: str,
        text: str,
        *,
        total: int | None,
        unit: str,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(done)
        self._named = ": ".join(filter(None, (standing, text)))
        self._total, self._unit, self._clock = total, unit, clock
        self._notes: tuple[str, ...] = ()
        self._lock = threading.Lock()
        #: When lines were said, and how much was done then.
        self._said = deque([(clock(), done)], maxlen=_LINES)

    def update(self, n: int = 1) -> Any:
        """Add `n` to what is done; from any thread."""
        self._move(n)

    def tick(self) -> None:
        """Log a line, if it is time."""
        self._move(0)

    def note(self, *notes: str) -> None:
        """Keep these notes, which the next lines show behind the counts."""
        self._notes = notes

    def _move(self, n: int) -> None:
        with self._lock:
            self.n += n
            now = self._clock()
            if now - self._said[-1][0] < INTERVAL:
                return
            line = self._line(now)
            self._said.append((now, self.n))
        logger.info("%s", line)

    def _line(self, now: float) -> str:
        then, before = self._said[0]
        pace = max(0.0, (self.n - before) / (now - then))
        told = [self._so_far(), f"{self._counted(pace)}/s"]
        if self._total is not None and 0 < self.n < self._total:
            told.append(f"{duration((self._total - self.n) / pace / 3600)} left" if pace else "nothing is coming in")
        return f"{self._named}: {', '.join((*told, *self._notes))}"

    def _so_far(self) -> str:
        if not self._total:
            return self._counted(self.n)
        done = human_size(self.n) if self._unit == "B" else f"{self.n:,}"
        return f"{done} of {self._counted(self._total)} ({min(self.n / self._total, 1):.1%})"

    def _counted(self, count: float) -> str:
        if self._unit == "B":
            return human_size(count)
        return f"{count:,.0f} {self._unit}s" if count >= 10 or count == int(count) else f"{count:.1f} {self._unit}s"
