"""Workers of a distributor, as `workers.Workers` are: for what has calls done, and hears what became of each.

A call that was given up, since its worker died again and again, has died; how often an engine tries before that is its
own. How far a call has come is not told.
"""

from __future__ import annotations

import os
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Generic, TypeVar

from laion_face_builder import distribute
from laion_face_builder.download.workers import QUIET, Call, Died, Done, Event, Failed
from laion_face_builder.errors import LaionFaceError, WorkerDied

C = TypeVar("C", bound=Call)


class Cluster(Generic[C]):
    """A context manager: at its end nothing of what it was given is done any more.

    Args:
        distributor: one of `distribute.DISTRIBUTORS`.
        count: calls at the same time; None for as many as the cluster can.

    Raises:
        OptionError: it is not installed.
    """

    def __init__(self, distributor: str, count: int | None) -> None:
        self._workers = distribute.Workers(distributor, count)
        self._calls: dict[Future[distribute.Done[C, Any]], C] = {}

    def __enter__(self) -> Cluster[C]:
        return self

    def __exit__(self, *how: object) -> None:
        self._workers.__exit__(*how)

    @property
    def is_busy(self) -> bool:
        """Whether any call is being done."""
        return bool(self._calls)

    def has_place(self, *, alone: bool = False) -> bool:
        """Whether `start` may be called; everybody works alone."""
        return len(self._calls) < self._workers.at_once

    def start(self, call: C, *, alone: bool = False) -> None:
        """Have a worker do `call`."""
        self._calls[self._workers.submit(_do, call)] = call

    def events(self, seconds: float) -> list[Event[C]]:
        """What has happened; waits up to `seconds` for the first."""
        finished, _ = wait(self._calls, seconds, FIRST_COMPLETED)
        return [_event(self._calls.pop(future), future.result()) for future in finished]


def _do(call: Call) -> Any:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    return call.run(lambda _: None)


def _event(call: C, done: distribute.Done[C, Any]) -> Event[C]:
    error = done.error
    if error is None:
        return Done(call, done.value)
    if isinstance(error, (LaionFaceError, OSError)) and not isinstance(error, WorkerDied):
        return Failed(call, error)
    return Died(call, str(error) if isinstance(error, WorkerDied) else f"{type(error).__name__}: {error}")
