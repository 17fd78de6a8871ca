"""At most so many connections to one host, first come first served, and hosts that are down given up as a whole.

Waiting for a busy host takes nothing: no connection, no place in flight, no room in the buffer.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from laion_face_builder.errors import PictureError

Job = TypeVar("Job")

#: Failures after which a host may be down as a whole. Others cost it and us next to nothing.
_SILENCE = frozenset({"timeout", "unreachable"})
_DOWN_SECONDS = 60.0
#: Hosts remembered while nothing is under way to them.
_REMEMBERED = 10_000


@dataclass
class _Host(Generic[Job]):
    busy: int = 0
    waiting: deque[Job] = field(default_factory=deque)
    silent: int = 0
    down_until: float = 0.0
    why: str = ""


class Hosts(Generic[Job]):
    """Counts who talks to which host. For one thread.

    A host that was silent `patience` times in a row, with no answer between, is down for a minute: without this, 4,096
    pictures of a dead host, eight at a time and 30 s each, would hold up a stream for four hours.

    Args:
        per_host: connections to one host at a time.
    """

    def __init__(self, per_host: int) -> None:
        self._per_host = per_host
        self._patience = max(16, 2 * per_host)
        self._hosts: OrderedDict[str, _Host[Job]] = OrderedDict()

    def enter(self, name: str, job: Job) -> bool:
        """Takes a connection to the host for `job`, or puts the job in its queue (False).

        Raises:
            PictureError: the host is down; the reason is that of the failures that showed it.
        """
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host()
            self._forget()
        if host.down_until and host.down_until > time.monotonic():
            raise PictureError(host.why, f"{name} was silent {host.silent} times in a row")
        if host.busy >= self._per_host:
            host.waiting.append(job)
            return False
        host.busy += 1
        return True

    def rejoin(self, name: str) -> None:
        """Takes a connection that was given back while its body waited, whatever the bound."""
        self._hosts.setdefault(name, _Host()).busy += 1

    def leave(self, name: str, reason: str = "") -> None:
        """Gives the connection back and says how it went ("" for any answer)."""
        host = self._hosts[name]
        host.busy -= 1
        if reason in _SILENCE:
            host.silent += 1
            host.why = reason
            if host.silent >= self._patience:
                host.down_until = time.monotonic() + _DOWN_SECONDS
        elif not reason:
            host.silent, host.down_until = 0, 0.0

    def freed(self, name: str, is_ready: Callable[[Job], bool]) -> Iterator[Job]:
        """Takes those out of the queue that should try to `enter` now, in order.

        Args:
            name: the host.
            is_ready: False for a job that would not start even so, or has ended; another one is given beside it.
        """
        host = self._hosts.get(name)
        if host is None or not host.waiting:
            return
        free = len(host.waiting) if host.down_until > time.monotonic() else self._per_host - host.busy
        while free > 0 and host.waiting:
            job = host.waiting.popleft()
            free -= is_ready(job)
            yield job

    def _forget(self) -> None:
        while len(self._hosts) > _REMEMBERED:
            name, host = next(iter(self._hosts.items()))
            if host.busy or host.waiting:
                self._hosts.move_to_end(name)
                return
            del self._hosts[name]
