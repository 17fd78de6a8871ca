"""Run calls in processes of their own: one that dies takes down what it was doing, and nothing else.

A pool of `concurrent.futures` breaks as a whole when one of its processes dies, and `multiprocessing` would run an
unguarded script of a user again in each. Here a worker is `python -m laion_face_builder.download.worker` at the other
end of a socket. It ends when we do, even if we are killed with -9, since the socket does; and while one lives it holds
the lock file open, so that whoever comes next can wait until the last of them has gone.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, Protocol, TypeVar

from laion_face_builder.errors import DownloadError
from laion_face_builder.log import logger
from laion_face_builder.parallel import python

_LOCK_SECONDS = 60.0
_POLL_SECONDS = 0.2
#: Workers get no token of the Hub, unless the index lies there.
_TOKENS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})


class Call(Protocol):
    """What a worker does; it travels there by pickle, and so do its reports and its result."""

    def run(self, report: Any) -> Any:
        """Do the call; `report` may be called with how far it has come."""
        ...


C = TypeVar("C", bound=Call)


@dataclass(frozen=True)
class Progress(Generic[C]):
    """How far a call has come."""

    call: C
    value: Any


@dataclass(frozen=True)
class Done(Generic[C]):
    """A call's result."""

    call: C
    value: Any


@dataclass(frozen=True)
class Failed(Generic[C]):
    """A call's error, of the kinds that say something about its files: LaionFaceError, OSError."""

    call: C
    error: Exception


@dataclass(frozen=True)
class Died(Generic[C]):
    """A call whose process ended, or that raised what nobody expects; `said` are its last words."""

    call: C
    said: str


Event = Progress[C] | Done[C] | Failed[C] | Died[C]


@dataclass
class _Worker(Generic[C]):
    process: subprocess.Popen[bytes]
    line: Connection
    talk: IO[bytes]
    calls: dict[int, C] = field(default_factory=dict)
    is_taken: bool = False

    def end(self) -> None:
        """Kill the process at once, whatever it does."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.line.close()
        self.talk.close()

    def last_words(self) -> str:
        """Return the last line that the process wrote, and its exit code."""
        self.process.wait()
        self.talk.seek(0)
        lines = self.talk.read().decode(errors="replace").strip().splitlines()
        return f"code {self.process.returncode}: {lines[-1] if lines else 'it said nothing'}"


class Workers(Generic[C]):
    """Processes that are started as they are needed. A context manager: at its end none of them is left.

    Args:
        count: how many there are at most.
        at_a_time: calls that each may do at the same time.
        lock: held by every one of them while it lives; waited for before the first one starts.
        shares_lock: whether workers of others that share it too may hold it at the same time.
        keeps_token: whether workers get the Hub's token that the environment has.
    """

    def __init__(
        self,
        count: int,
        at_a_time: int = 1,
        *,
        lock: Path | None = None,
        shares_lock: bool = False,
        keeps_token: bool = False,
    ) -> None:
        self._count, self._at_a_time, self._lock, self._shares_lock = count, at_a_time, lock, shares_lock
        self._environment = environment(keeps_token)
        self._workers: list[_Worker[C]] = []
        self._calls = 0
        self._held: int | None = None

    def __enter__(self) -> Workers[C]:
        if self._lock is not None:
            self._held = _held(self._lock, fcntl.LOCK_SH if self._shares_lock else fcntl.LOCK_EX)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        if self._held is not None:
            os.close(self._held)

    @property
    def is_busy(self) -> bool:
        """Whether any call is being done."""
        return any(worker.calls for worker in self._workers)

    def has_place(self, *, alone: bool = False) -> bool:
        """Say whether `start` may be called with this `alone`."""
        return len(self._workers) < self._count or self._best(alone) is not None

    def start(self, call: C, *, alone: bool = False) -> None:
        """Have a worker do `call`; with `alone` one that does nothing else meanwhile."""
        worker = self._best(alone)
        if (worker is None or worker.calls) and len(self._workers) < self._count:
            worker = self._hired()
        assert worker is not None, "there is no place"  # noqa: S101 - `has_place` was not asked
        self._calls += 1
        worker.calls[self._calls], worker.is_taken = call, alone
        with suppress(OSError):  # One that has just died is noticed when it is listened to.
            worker.line.send((self._calls, call))

    def events(self, seconds: float) -> list[Event[C]]:
        """Return what has happened; wait up to `seconds` for the first event."""
        lines = {worker.line: worker for worker in self._workers}
        # `wait` gives back what it was given, which its types do not say.
        return [event for line in wait(list(lines), seconds) for event in self._heard(lines[line])]  # type: ignore[index]

    def each(self, calls: Sequence[C]) -> Iterator[Done[C] | Failed[C]]:
        """Do all the calls; one whose process dies is done once more, alone.

        Raises:
            DownloadError: the process of a call died twice.
        """
        waiting = deque(calls)
        suspects: list[C] = []
        suspected: list[C] = []
        while waiting or suspects or self.is_busy:
            while suspects and self.has_place(alone=True):
                self.start(suspects.pop(), alone=True)
            while waiting and not suspects and self.has_place():
                self.start(waiting.popleft())
            for event in self.events(_POLL_SECONDS):
                if isinstance(event, Died):
                    if event.call in suspected:
                        raise DownloadError(f"{event.call}: its process ended twice with {event.said}")
                    suspected.append(event.call)
                    suspects.append(event.call)
                elif not isinstance(event, Progress):
                    yield event

    def _best(self, alone: bool) -> _Worker[C] | None:
        """Return the least busy worker that has a place; None if there is none."""
        most = 0 if alone else self._at_a_time - 1
        free = [
            worker for worker in self._workers if len(worker.calls) <= most and not (worker.is_taken and worker.calls)
        ]
        return min(free, key=lambda worker: len(worker.calls), default=None)

    def _hired(self) -> _Worker[C]:
        ours, theirs = socket.socketpair()
        talk = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed when the worker ends
        kept = [theirs.fileno(), *([self._held] if self._held is not None else [])]
        process = subprocess.Popen(  # noqa: S603 - our own module
            python("-m", "laion_face_builder.download.worker", str(theirs.fileno()), str(self._at_a_time)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=talk,
            env=self._environment,
            pass_fds=kept,
            start_new_session=True,  # Ctrl-C is ours alone: it ends them
        )
        theirs.close()
        worker: _Worker[C] = _Worker(process, Connection(ours.detach()), talk)
        self._workers.append(worker)
        return worker

    def _heard(self, worker: _Worker[C]) -> list[Event[C]]:
        try:
            kind, number, value = worker.line.recv()
        except (EOFError, OSError):
            return self._buried(worker)
        if kind == "log":
            logger.log(number, "%s", value)
            return []
        call = worker.calls[number]
        if kind == "progress":
            return [Progress(call, value)]
        del worker.calls[number]
        made: Event[C] = {"done": Done, "failed": Failed, "died": Died}[kind](call, value)
        return [made]

    def _buried(self, worker: _Worker[C]) -> list[Event[C]]:
        said = worker.last_words()
        self._workers.remove(worker)
        worker.end()
        return [Died(call, said) for call in worker.calls.values()]


def environment(keeps_token: bool = False) -> dict[str, str]:
    """Return the environment of a worker, without tokens and proxies: a proxy's address may hold a password.

    The task says which proxy its fetches go through.
    """
    dropped = frozenset() if keeps_token else _TOKENS
    kept = {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}
    return {name: text for name, text in kept.items() if name not in dropped}


@contextmanager
def nobody_works(lock: Path) -> Iterator[bool]:
    """Yield whether no worker has this lock; then none gets it before the block ends."""
    descriptor = -1
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_free = True
    except OSError:  # somebody works, or nobody may write here
        is_free = False
    try:
        yield is_free
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _held(lock: Path, how: int) -> int:
    """Return a descriptor that holds the lock on the file, and with which workers inherit it.

    Raises:
        DownloadError: processes of an earlier download hold it, and do not end.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(descriptor)
                raise DownloadError(
                    f"{lock}: processes of an earlier download still hold it. End them and try again."
                ) from None
            time.sleep(_POLL_SECONDS)
