"""What a request through the guarding proxy may cost, and the turns at each host."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

#: Bytes read at once.
PIECE = 1 << 16


@dataclass(frozen=True)
class ProxyLimits:
    """What one request through the proxy may cost.

    Attributes:
        timeout: seconds in all, from the client's connection to the last byte, waiting for a turn included.
        max_bytes: of a body, declared or real.
        per_host: connections to one host name at a time; more wait in order.
        allow_private_hosts: connect to addresses that are not public too.
    """

    timeout: float = 30.0
    max_bytes: int = 32_000_000
    per_host: int = 8
    allow_private_hosts: bool = False

    @property
    def max_raw_bytes(self) -> int:
        """Of a body with its packing: TLS records and handshake, chunk sizes."""
        return self.max_bytes + self.max_bytes // 16 + PIECE


class Turns:
    """At most `each` at a time for one host, first come, first served. Those of other hosts never wait for it."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._busy: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def at(self, host: str) -> AsyncIterator[None]:
        """Holds a turn at `host`."""
        await self._take(host)
        try:
            yield
        finally:
            self._give(host)

    async def _take(self, host: str) -> None:
        if self._busy[host] < self._each:
            self._busy[host] += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(host, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(host)  # it was handed over at the very moment
            raise

    def _give(self, host: str) -> None:
        waiting = self._waiting.get(host)
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._waiting.pop(host, None)
        self._busy[host] -= 1
        if not self._busy[host]:
            del self._busy[host]
