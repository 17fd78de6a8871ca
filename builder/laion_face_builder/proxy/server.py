"""The guarding proxy's own side: one asyncio loop in a process of its own; `proxy` is the side that starts it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import threading
from collections import Counter
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

from laion_face_builder.fetch.guard import AddressRule
from laion_face_builder.fetch.names import Resolver
from laion_face_builder.proxy.exchange import Exchange, Streams, connected
from laion_face_builder.proxy.limits import PIECE, ProxyLimits, Turns
from laion_face_builder.proxy.wire import Refusal, Request

#: Of the addresses of one host so many are tried.
_MOST_ADDRESSES = 3
_POLL_SECONDS = 1.0
_OPEN_FILES = 65_536


class ProxyServer:
    """The proxy on one event loop.

    Args:
        limits: bounds of each request.
        rule: which addresses may be connected to.
        secret: what clients have to know; others on this machine cannot use the proxy.
        upstream: "http://[user:password@]host:port", another proxy to go through. Addresses are then its to check.
    """

    def __init__(self, limits: ProxyLimits, rule: AddressRule, secret: str, upstream: str | None = None) -> None:
        self.limits = limits
        self.credentials = _basic("laion-face", secret)
        self.resolver = Resolver(allow=rule)
        self.turns = Turns(limits.per_host)
        self.reasons: Counter[str] = Counter()
        self.bytes = 0
        self.exchanges: set[Exchange] = set()
        self.upstream: tuple[str, int] | None = None
        self.upstream_credentials: str | None = None
        if upstream is not None:
            parts = urlsplit(upstream)
            self.upstream = (parts.hostname or "", parts.port or 80)
            user, password = unquote(parts.username or ""), unquote(parts.password or "")
            self.upstream_credentials = _basic(user, password) if user else ""

    async def start(self) -> tuple[asyncio.Server, int]:
        """Listens on a free port of 127.0.0.1; gives the port too."""
        loop = asyncio.get_running_loop()

        def protocol() -> _ClientProtocol:
            return _ClientProtocol(asyncio.StreamReader(PIECE, loop), self)

        server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=1024)
        return server, server.sockets[0].getsockname()[1]

    def stats(self) -> dict[str, Any]:
        """Requests by how they ended ("ok" or a reason), bytes of bodies and tunnels, and those open now."""
        return {"active": len(self.exchanges), "bytes": self.bytes, "reasons": dict(self.reasons)}

    def stop(self) -> None:
        """Cuts what is open."""
        for exchange in list(self.exchanges):
            exchange.cut()
        self.resolver.close()

    async def connect(self, request: Request) -> Streams:
        """A connection to a checked address of the request's host, or to the other proxy."""
        if self.upstream is not None:
            return await connected(self.upstream[0], self.upstream[1])
        addresses = (await self.resolver.resolve(request.host, request.port))[:_MOST_ADDRESSES]
        for address in addresses[:-1]:
            # One dead address must leave time for the next.
            with suppress(Refusal, asyncio.TimeoutError):
                return await asyncio.wait_for(connected(address, request.port), self.limits.timeout / 4)
        return await connected(addresses[-1], request.port)


class _ClientProtocol(asyncio.StreamReaderProtocol):
    """A client that closes, even only its sending side, has left: what is going on for it ends."""

    def __init__(self, reader: asyncio.StreamReader, server: ProxyServer) -> None:
        self._server = server
        self._going: asyncio.Task[None] | None = None
        super().__init__(reader, self._begin)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        exchange = Exchange(self._server, reader, writer)
        self._going = asyncio.get_running_loop().create_task(exchange.run())

    def eof_received(self) -> bool:
        super().eof_received()
        if self._going is not None:
            self._going.cancel()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._going is not None:
            self._going.cancel()


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def _serve(settings: dict[str, Any], parent: int) -> None:
    """Runs until standard input ends or the parent is another one: however the parent went, we go too."""
    rule = AddressRule(settings["allow_private"], tuple(settings["also_public"]))
    proxy = ProxyServer(ProxyLimits(**settings["limits"]), rule, settings["secret"], settings["upstream"])
    server, port = await proxy.start()
    _say({"port": port})
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def listen() -> None:
        for _ in sys.stdin.buffer:
            loop.call_soon_threadsafe(lambda: _say(proxy.stats()))
        loop.call_soon_threadsafe(ended.set)

    # A daemon: it may never return from reading.
    threading.Thread(target=listen, daemon=True).start()
    while not ended.is_set() and os.getppid() == parent:
        # A forked child of the parent may hold the pipe open, so its end alone is not enough.
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ended.wait(), _POLL_SECONDS)
    server.close()
    proxy.stop()


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _raise_file_limit() -> None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def main() -> None:
    """The child's whole life: settings from the first line of standard input, each further line asks for the counts."""
    parent = os.getppid()  # first of all: it may be killed at any moment from now on
    _raise_file_limit()
    settings = json.loads(sys.stdin.buffer.readline())
    with suppress(KeyboardInterrupt, BrokenPipeError):
        asyncio.run(_serve(settings, parent))
    sys.stdout.flush()
    os._exit(0)  # the listening thread and open questions to the resolver would keep us


if __name__ == "__main__":
    main()
