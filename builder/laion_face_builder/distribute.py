"""One function over many tasks, in processes of this machine or on the machines of a Spark or Ray cluster.

    for done in each(make_part, tasks, distributor="ray", workers=8):
        print(done.task, done.result())

The caller knows what a task is; the engine knows who runs it, and where. A task carries names, not data: it reads what
it needs, and what it makes is there whole or not at all. So a worker that dies costs its unfinished task alone, which
is tried again (by Spark as often as the session says).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from laion_face_builder.answers import Answer
from laion_face_builder.engines import ENGINES
from laion_face_builder.errors import OptionError, WorkerDied

T = TypeVar("T")
U = TypeVar("U")

logger = logging.getLogger("laion_face")

DISTRIBUTORS = tuple(ENGINES)


@dataclass(frozen=True)
class Done(Generic[T, U]):
    """A task that has ended.

    Attributes:
        value: what the function gave; None after an error.
        error: what the function raised, or `WorkerDied`.
    """

    task: T
    value: U | None
    error: Exception | None

    def result(self) -> U:
        """Give the value.

        Raises:
            Exception: the error, if there is one.
        """
        if self.error is not None:
            raise self.error
        return cast(U, self.value)


def each(
    function: Callable[[T], U], tasks: Iterable[T], *, distributor: str = "processes", workers: int | None = None
) -> Iterator[Done[T, U]]:
    """Yield every task once it has ended, whichever ends first. What `function` logs, this process says then.

    No more tasks are taken from `tasks` than are at work. Closing the iterator ends what is under way.

    Args:
        function: of a module, since workers import it; it and what it takes, gives and raises travel pickled.
        distributor: one of `DISTRIBUTORS`. An active Spark session, or an initialised Ray, is used and left as it is;
            else one is made by the environment (spark-submit's, RAY_ADDRESS), or on this machine, and ended.
        workers: tasks at work at the same time; None means one a processor, of this machine or the cluster.

    Raises:
        OptionError: there is no such distributor, or it is not installed.
    """
    if distributor not in ENGINES:
        raise OptionError(f"distributor={distributor!r}: expected one of {', '.join(DISTRIBUTORS)}")
    engine = ENGINES[distributor](workers)
    pool = ThreadPoolExecutor(engine.workers, thread_name_prefix="laion-face-tasks")

    def work(task: T) -> tuple[T, Answer]:
        try:
            return task, engine.run(function, task)
        except WorkerDied as error:
            return task, Answer(None, error, [])

    rest = iter(tasks)
    try:
        waiting = {pool.submit(work, task) for task in itertools.islice(rest, engine.workers)}
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                task, answer = future.result()
                waiting |= {pool.submit(work, task) for task in itertools.islice(rest, 1)}
                for level, text in answer.said:
                    logger.log(level, "%s", text)
                yield Done(task, answer.value, answer.error)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        engine.stop()
        pool.shutdown()
