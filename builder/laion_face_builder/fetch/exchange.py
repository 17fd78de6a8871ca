"""One HTTP request and its answer, within bounds: no redirect is followed here and nothing is tried twice.

Chosen by measurement, libcurl does it (benchmarks/README.md). What it is told not to do matters as much: no
redirects, no proxy from the environment, no decompression, no cookies, no protocol but http and https.

Only public addresses are reached (law 7), and that holds at the socket: `names.Resolver` gives checked addresses,
libcurl is pinned to them, and whatever address it is about to connect to is checked once more when it asks for the
socket.
"""

from __future__ import annotations

import asyncio
import re
from functools import partial

from laion_face_builder.fetch.answers import Answer
from laion_face_builder.fetch.curl_loop import CurlLoop
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.names import Resolver
from laion_face_builder.fetch.transfer import Intake, Transfer

_LITERAL = re.compile(r"[0-9.]+|.*:.*")


class Exchanges:
    """Makes requests; belongs to the running event loop. `close` it when done.

    Args:
        limits: the bounds.
        resolver: gives addresses that may be connected to.
    """

    def __init__(self, limits: FetchLimits, resolver: Resolver) -> None:
        self._limits, self._resolver = limits, resolver
        self._curls = CurlLoop(limits.kept_connections, limits.max_wire_bytes, hears_of_sockets=limits.proxy is None)
        self._idle: list[Transfer] = []

    async def get(self, url: str, host: str, port: int, seconds: float, intake: Intake) -> Answer:
        """Ask for `url` and return the answer, read whole. While there is no room for it, its time stands still.

        Args:
            url: as a `WebAddress` has it.
            host: likewise.
            port: likewise.
            seconds: for everything, once the name is resolved.
            intake: takes in the body.

        Raises:
            PictureError: "bad_url", "private_address", "dns", "refused", "unreachable", "connection", "tls",
                "tls_incomplete_chain", "timeout", "reset", "incomplete", "too_large", "bad_response", "content_coding",
                "truncated", "other".
        """
        pinned = [] if self._limits.proxy else await self._pinned(host, port)
        transfer = self._idle.pop() if self._idle else Transfer(self._limits, self._curls.socket_opened, self._hold)
        transfer.prepare(url, pinned, intake)
        number = await self._curls.perform(transfer.curl, seconds)
        while number == 0 and transfer.is_behind:
            await self._room(intake)
            transfer.drain()
        # Not reached when this was cancelled: a handle in an unknown state is not used again.
        try:
            return transfer.answer(number)
        finally:
            transfer.clear()
            self._idle.append(transfer)

    def close(self) -> None:
        """End every connection; nobody may be waiting any more."""
        self._curls.close()
        for transfer in self._idle:
            transfer.curl.close()
        self._idle.clear()

    def before_fork(self) -> None:
        """Prepare for a fork, as `CurlLoop.before_fork`."""
        self._curls.before_fork()

    def inherited(self) -> list[object]:
        """Return what a forked child must never free, as `CurlLoop.inherited`."""
        return [*self._curls.inherited(), *self._idle]

    def _hold(self, transfer: Transfer) -> None:
        self._curls.hold(transfer.curl)
        transfer.intake.hold(partial(self._go_on, transfer, transfer.exchange))

    def _go_on(self, transfer: Transfer, exchange: int) -> None:
        if exchange != transfer.exchange or not self._curls.is_under_way(transfer.curl):
            return  # it has ended meanwhile
        if transfer.drain():
            self._curls.go_on(transfer.curl)
        else:
            transfer.intake.hold(partial(self._go_on, transfer, exchange))

    async def _room(self, intake: Intake) -> None:
        has_room = asyncio.Event()
        intake.hold(has_room.set)
        await has_room.wait()

    async def _pinned(self, host: str, port: int) -> list[str]:
        addresses = await self._resolver.resolve(host, port)
        if _LITERAL.fullmatch(host):
            return []
        return [f"{host}:{port}:{','.join(f'[{a}]' if ':' in a else a for a in addresses)}"]
