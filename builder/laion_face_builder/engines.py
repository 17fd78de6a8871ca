"""The engines that run tasks: processes of this machine, Spark, Ray. Only `distribute` uses them.

Whatever the engine, a worker process calls the function, collects what is logged, and answers with its value or error.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

from laion_face_builder.errors import LaionFaceError, OptionError, WorkerDied
from laion_face_builder.log import logger
from laion_face_builder.parallel import cores, interpreter


@dataclass(frozen=True)
class TaskResult:
    """A worker's answer: the function's value or its error, and what it logged (`said`: levels and lines)."""

    value: Any
    error: Exception | None
    said: list[tuple[int, str]]


def answered(call: tuple[Callable[[Any], Any], Any]) -> TaskResult:
    """Call a function with its task; return its value or the exception that it raised."""
    function, task = call
    with _noted() as said:
        try:
            return TaskResult(function(task), None, said)
        except Exception as error:  # It is the caller's, who may know what to do with it.
            return TaskResult(None, _portable(error), said)


def _portable(error: Exception) -> Exception:
    """Return the error if it can be pickled and unpickled, else a LaionFaceError with its text."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made a moment ago
        return error
    except Exception:  # Whatever classes of others do when they are made again.
        return LaionFaceError(f"{type(error).__name__}: {error}")


class _Notes(logging.Handler):
    """A log handler that keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((record.levelno, record.getMessage()))


@contextmanager
def _noted() -> Iterator[list[tuple[int, str]]]:
    """Collect what is logged in the block instead of writing it out."""
    notes, before = _Notes(), (logger.handlers, logger.level, logger.propagate)
    logger.handlers, logger.propagate = [notes], False
    logger.setLevel(logging.INFO)
    try:
        yield notes.said
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)


#: How often a task is begun before its worker's death is the task's failure.
TRIES = 2


class Engine(Protocol):
    """Runs single tasks, each for a thread of the caller's; `workers` is how many run at the same time."""

    workers: int

    def run(self, function: Callable[[Any], Any], task: Any) -> TaskResult:
        """Have a worker run the task, and wait for its answer.

        Raises:
            WorkerDied: the worker gave no answer.
            LaionFaceError: no worker can call the function at all.
        """
        ...

    def stop(self) -> None:
        """End the tasks under way; a `run` that waits for one then raises, or returns what it has."""
        ...


class Processes:
    """An engine with one process for each thread that has tasks, replaced when it dies."""

    def __init__(self, workers: int | None) -> None:
        self.workers = workers or cores()
        self._of_thread = threading.local()
        self._lock = threading.Lock()
        self._started: list[_Process] = []
        self._is_stopped = False

    def run(self, function: Callable[[Any], Any], task: Any) -> TaskResult:
        """Implement `Engine.run`."""
        for _ in range(TRIES):
            process = self._process()
            try:
                return process.run(function, task)
            except (EOFError, ConnectionError):
                how = process.end()
                with self._lock:
                    self._started.remove(process)
                self._of_thread.process = None
        raise WorkerDied(f"its worker process ended {TRIES} times, at last with {how}")

    def stop(self) -> None:
        """Implement `Engine.stop`."""
        with self._lock:
            self._is_stopped = True
            for process in self._started:
                process.kill()

    def _process(self) -> _Process:
        process: _Process | None = getattr(self._of_thread, "process", None)
        if process is None:
            with self._lock:
                if self._is_stopped:
                    raise WorkerDied("it was stopped")
                process = self._of_thread.process = _Process()
                self._started.append(process)
        return process


class _Process:
    """One worker process, and our end of the pipe to it."""

    def __init__(self) -> None:
        # A fork would copy the locks that other threads hold at that moment.
        context = multiprocessing.get_context("spawn")
        self._connection, its_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(its_end,))
        self._process.start()
        its_end.close()

    def run(self, function: Callable[[Any], Any], task: Any) -> TaskResult:
        """Have the process run the task, and wait for its answer.

        Raises:
            EOFError, ConnectionError: the process ended first.
        """
        self._connection.send((function, task))
        return cast(TaskResult, self._connection.recv())

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> str:
        """Kill the process and say how it ended: a signal's name, or an exit code."""
        self.kill()  # It may have closed its end of the pipe and still run.
        self._process.join()
        self._connection.close()
        code = self._process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class Spark:
    """An engine with a Spark job of one partition for each task."""

    def __init__(self, workers: int | None) -> None:
        with _installed("pyspark", "spark"):
            from pyspark.sql import SparkSession
        active = SparkSession.getActiveSession()
        session = active or _spark_session(workers or cores())
        self._own = None if active else session
        self._context: Any = session.sparkContext
        self._group = f"laion-face-{uuid.uuid4().hex[:8]}"
        self.workers = workers or self._context.defaultParallelism

    def run(self, function: Callable[[Any], Any], task: Any) -> TaskResult:
        """Implement `Engine.run`."""
        self._context.setJobGroup(self._group, "laion-face", interruptOnCancel=True)
        try:
            (answer,) = self._context.parallelize([(function, task)], 1).map(answered).collect()
        except Exception as error:  # What the function raises is in an answer: this is the job's failure.
            if "PythonException" in f"{type(error).__name__}: {error}":
                raise _not_callable("pyspark", error) from error
            raise WorkerDied(f"Spark gave it up: {_first_line(error)}") from error
        return cast(TaskResult, answer)

    def stop(self) -> None:
        """Implement `Engine.stop`."""
        with suppress(Exception):  # Whoever began the session may have ended it by now.
            self._context.cancelJobGroup(self._group)
        if self._own is not None:
            self._own.stop()


class Ray:
    """An engine with a remote call for each task."""

    def __init__(self, workers: int | None) -> None:
        with _installed("ray", "ray"):
            import ray
        self._ray: Any = ray
        self._is_own = not ray.is_initialized()
        if self._is_own:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Otherwise Ray reports its usage to its makers.
            here = {"address": "local", "num_cpus": workers or cores(), "include_dashboard": False}
            here["_node_ip_address"] = "127.0.0.1"  # Nobody else is to reach what runs for us alone.
            with _starting("ray"):
                ray.init(logging_level=logging.WARNING, **({} if os.environ.get("RAY_ADDRESS") else here))
        self._call = ray.remote(max_retries=TRIES - 1)(answered)
        self._running: set[Any] = set()
        self._lock = threading.Lock()
        self.workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(self, function: Callable[[Any], Any], task: Any) -> TaskResult:
        """Implement `Engine.run`."""
        with self._lock:
            reference = self._call.remote((function, task))
            self._running.add(reference)
        try:
            return cast(TaskResult, self._ray.get(reference))
        except (self._ray.exceptions.RayTaskError, self._ray.exceptions.RaySystemError) as error:
            raise _not_callable("ray", error) from error
        except self._ray.exceptions.RayError as error:
            raise WorkerDied(f"Ray gave it up: {_first_line(error)}") from error
        finally:
            with self._lock:
                self._running.discard(reference)

    def stop(self) -> None:
        """Implement `Engine.stop`."""
        with self._lock:
            for reference in self._running:
                self._ray.cancel(reference, force=True)
        if self._is_own:
            self._ray.shutdown()


@contextmanager
def _installed(package: str, extra: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise OptionError(
            f"distributor={package}: {package} is not installed. Install it: `pip install 'laion-face[{extra}]'`"
        ) from error


@contextmanager
def _starting(distributor: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Whatever the engine's libraries raise.
        raise LaionFaceError(f"distributor={distributor}: it does not start: {_first_line(error)}") from error


def _not_callable(distributor: str, error: Exception) -> LaionFaceError:
    """Return the error for workers that cannot call our function at all.

    It cannot be the function's own: what that raises comes back in an answer.
    """
    said = re.findall(r"^\s*(\w+(?:Error|Exception): .+)$", str(error), re.MULTILINE)
    why = said[-1] if said else _first_line(error)
    return LaionFaceError(
        f"distributor={distributor}: its workers cannot do this: {why}. Install laion-face where they run, in the same "
        "version and for the same Python, and name that Python to the engine (PYSPARK_PYTHON)"
    )


def _spark_session(workers: int) -> Any:
    """Return the session that the environment describes, such as spark-submit's; else one of this machine."""
    if not os.environ.get("JAVA_HOME") and shutil.which("java") is None:
        raise OptionError("distributor=pyspark: Spark needs Java 17 or newer, and there is no java here. Install it")
    from pyspark import SparkConf
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", interpreter())
    with _starting("pyspark"):
        conf = SparkConf().setIfMissing("spark.app.name", "laion-face")
        if not conf.contains("spark.master"):
            conf.setMaster(f"local[{workers},{TRIES}]")
            # Nobody else is to reach what runs for us alone.
            conf.set("spark.driver.bindAddress", "127.0.0.1").set("spark.driver.host", "127.0.0.1")
            conf.set("spark.ui.enabled", "false")
        session = SparkSession.builder.config(conf=conf).getOrCreate()
    session.sparkContext.setLogLevel("FATAL")  # Else a worker's death is a page of Java's, too.
    return session


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _serve(connection: Any) -> None:
    """Serve as a worker process: answer until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; whoever started us ends us.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, ConnectionError):
        while True:
            connection.send(answered(connection.recv()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # A killed parent's workers would go on with what nobody waits for.


ENGINES: dict[str, Callable[[int | None], Engine]] = {"processes": Processes, "pyspark": Spark, "ray": Ray}
