"""The names of the web in a box: a DNS server for one event loop, so that every client resolves as it always does.

Known names have one A record and no AAAA; all others do not exist. A slow name's first look-up takes seconds and later
ones none, since a resolver that was slow to find an answer keeps it. The seconds are fewer than the 5 after which the
C library asks again.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from collections.abc import Callable
from typing import Protocol

from web_plan import Host, HostFate, Plan

#: Where it listens, as resolv.conf names it.
ADDRESS = "127.0.0.53"
SLOW_SECONDS = 4.0
_TTL = 300
_A = 1


class Loop(Protocol):
    """The event loop, as far as the name server needs it."""

    def watch(self, number: int, action: Callable[[], None]) -> None:
        """Call `action` whenever there is something to read."""

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Call `action` once, after so many seconds."""


class Names:
    """Answers for the names of a plan; `asked` counts questions for addresses."""

    def __init__(self, plan: Plan, loop: Loop) -> None:
        self._known = {host.name: host for host in plan.hosts if host.fate is not HostFate.UNKNOWN}
        self._loop = loop
        self.forget()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((ADDRESS, 53))
        self._socket.setblocking(False)
        loop.watch(self._socket.fileno(), self._read)

    def forget(self) -> None:
        """Forget all questions, so that slow names are slow again."""
        self.asked = 0
        self._known_at: dict[str, float] = {}

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                question, client = self._socket.recvfrom(1500)
                name, kind, end = asked(question)
                self.asked += kind == _A
                send = functools.partial(self._answer, question[:end], name, kind, client)
                if wait := self._wait(name):
                    self._loop.later(wait, send)
                else:
                    send()

    def _wait(self, name: str) -> float:
        host = self._known.get(name)
        if host is None or not host.is_slow_name:
            return 0.0
        now = time.monotonic()
        return max(0.0, self._known_at.setdefault(name, now + SLOW_SECONDS) - now)

    def _answer(self, question: bytes, name: str, kind: int, client: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendto(answer(question, kind, self._known.get(name)), client)


def answer(question: bytes, kind: int, host: Host | None) -> bytes:
    """Return the answer to a question for a record of this kind; `host` is None if the name does not exist."""
    record = b""
    if host is not None and kind == _A:
        # The name by a pointer to the question's, type A, class IN, time to live, length, address.
        record = b"\xc0\x0c\0\x01\0\x01" + _TTL.to_bytes(4, "big") + b"\0\x04" + socket.inet_aton(host.address)
    flags = b"\x81\x80" if host is not None else b"\x81\x83"
    header = question[:2] + flags + b"\0\x01" + (b"\0\x01" if record else b"\0\0") + b"\0\0\0\0"
    return header + question[12:] + record


def asked(question: bytes) -> tuple[str, int, int]:
    """Return name and type that a DNS question asks for, and where it ends."""
    labels, at = [], 12
    while size := question[at]:
        labels.append(question[at + 1 : at + 1 + size].decode("latin-1").lower())
        at += 1 + size
    return ".".join(labels), int.from_bytes(question[at + 1 : at + 3], "big"), at + 5
