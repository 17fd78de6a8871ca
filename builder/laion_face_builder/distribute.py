"""One function over many tasks, in processes of this machine or on the machines of a Spark or Ray cluster.

    for done in each(make_part, tasks, distributor="ray", workers=8):
        print(done.task, done.result())

The caller knows what a task is; the engine knows who runs it, and where. A task carries names, not data: it reads what
it needs, and what it makes is there whole or not at all. So a worker that dies costs its unfinished task alone, which
is tried again (by Spark as often as the session says).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from laion_face_builder.engines import ENGINES
from laion_face_builder.errors import OptionError, WorkerDied
from laion_face_builder.log import logger

T = TypeVar("T")
U = TypeVar("U")

DISTRIBUTORS = tuple(ENGINES)


@dataclass(frozen=True)
class FinishedTask(Generic[T, U]):
    """A task that has ended.

    Attributes:
        value: what the function gave; None after an error.
        error: what the function raised, or `WorkerDied`.
    """

    task: T
    value: U | None
    error: Exception | None

    def result(self) -> U:
        """Return the value.

        Raises:
            Exception: the task's error, if it has one.
        """
        if self.error is not None:
            raise self.error
        return cast(U, self.value)


def each(
    function: Callable[[T], U], tasks: Iterable[T], *, distributor: str = "processes", workers: int | None = None
) -> Iterator[FinishedTask[T, U]]:
    """Run the tasks as `TaskPool.each` does, on workers for them alone; closing the iterator ends what is under way.

    Args:
        distributor, workers: as for `TaskPool`.

    Raises:
        OptionError: there is no such distributor, or it is not installed.
    """
    with TaskPool(distributor, workers) as crew:
        yield from crew.each(function, tasks)


class TaskPool:
    """The workers that run tasks until the `with` block ends; what is under way then is ended.

    Args:
        distributor: one of `DISTRIBUTORS`. An active Spark session, or an initialised Ray, is used and left as it is;
            else one is made by the environment (spark-submit's, RAY_ADDRESS), or on this machine, and ended.
        workers: tasks at work at the same time; None means one a processor, of this machine or the cluster.

    Raises:
        OptionError: there is no such distributor, or it is not installed.
    """

    def __init__(self, distributor: str, workers: int | None = None) -> None:
        if distributor not in ENGINES:
            raise OptionError(f"distributor={distributor!r}: expected one of {', '.join(DISTRIBUTORS)}")
        self._engine = ENGINES[distributor](workers)
        self._threads = ThreadPoolExecutor(self._engine.workers, thread_name_prefix="laion-face-tasks")

    def __enter__(self) -> TaskPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._engine.stop()
        self._threads.shutdown()

    def each(self, function: Callable[[T], U], tasks: Iterable[T]) -> Iterator[FinishedTask[T, U]]:
        """Yield every task once it has ended, whichever ends first, and log here what `function` logged in its worker.

        No more tasks are taken from `tasks` than are at work.

        Args:
            function: one of a module, since workers import it; it and what it takes, gives and raises are pickled.
        """

        rest = iter(tasks)
        waiting = {self.submit(function, task) for task in itertools.islice(rest, self.at_once)}
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                waiting |= {self.submit(function, task) for task in itertools.islice(rest, 1)}
                yield future.result()

    @property
    def at_once(self) -> int:
        """How many tasks are at work at the same time."""
        return self._engine.workers

    def submit(self, function: Callable[[T], U], task: T) -> Future[FinishedTask[T, U]]:
        """Run one task as soon as a worker is free. The future raises only if no worker can call the function."""
        return self._threads.submit(self._done, function, task)

    def _done(self, function: Callable[[T], U], task: T) -> FinishedTask[T, U]:
        try:
            answer = self._engine.run(function, task)
        except WorkerDied as error:
            return FinishedTask(task, None, error)
        for level, text in answer.said:
            logger.log(level, "%s", text)
        return FinishedTask(task, answer.value, answer.error)
