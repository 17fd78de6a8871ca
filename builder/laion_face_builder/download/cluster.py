"""Run calls on the workers of a distributor, with the same methods and events as `workers.Workers`.

A call that the distributor gave up, since its workers kept dying, is reported as `Died`; how often that is tried is the
distributor's own choice. There are no `Progress` events.
"""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Generic, TypeVar

from laion_face_builder import distribute
from laion_face_builder.download.workers import Call, Died, Done, Event, Failed
from laion_face_builder.errors import LaionFaceError, WorkerDied

C = TypeVar("C", bound=Call)


class Cluster(Generic[C]):
    """The workers of a distributor. A context manager: at its end no call goes on.

    Args:
        distributor: one of `distribute.DISTRIBUTORS`.
        count: calls at the same time; None for as many as the cluster can.

    Raises:
        OptionError: the distributor is not installed.
    """

    def __init__(self, distributor: str, count: int | None) -> None:
        self._workers = distribute.TaskPool(distributor, count)
        self._calls: dict[Future[distribute.FinishedTask[C, Any]], C] = {}

    def __enter__(self) -> Cluster[C]:
        return self

    def __exit__(self, *how: object) -> None:
        self._workers.__exit__(*how)

    @property
    def is_busy(self) -> bool:
        """Whether any call is being done."""
        return bool(self._calls)

    def has_place(self, *, alone: bool = False) -> bool:
        """Say whether `start` may be called; a worker does one call at a time, whatever `alone` says."""
        return len(self._calls) < self._workers.at_once

    def start(self, call: C, *, alone: bool = False) -> None:
        """Have a worker do `call`."""
        self._calls[self._workers.submit(_do, call)] = call

    def events(self, seconds: float) -> list[Event[C]]:
        """Return what has happened; wait up to `seconds` for the first event."""
        finished, _ = wait(self._calls, seconds, FIRST_COMPLETED)
        return [_event(self._calls.pop(future), future.result()) for future in finished]


def _do(call: Call) -> Any:
    return call.run(lambda _: None)


def _event(call: C, done: distribute.FinishedTask[C, Any]) -> Event[C]:
    error = done.error
    if error is None:
        return Done(call, done.value)
    if isinstance(error, (LaionFaceError, OSError)) and not isinstance(error, WorkerDied):
        return Failed(call, error)
    return Died(call, str(error) if isinstance(error, WorkerDied) else f"{type(error).__name__}: {error}")
