"""libcurl's transfers, run on an asyncio event loop.

libcurl says which sockets it waits for. They go into a selector of their own, and asyncio watches that selector as one
file descriptor: what is ready is handled in one go, without asyncio's cost for each socket. That halves the CPU of a
fetch against `loop.add_reader` (benchmarks/bench_http_clients.py).
"""

from __future__ import annotations

import asyncio
import selectors
import socket as sockets
import struct
import sys
import threading
from dataclasses import dataclass
from typing import Any

import pycurl

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_TO_CURL = {
    _READ: pycurl.CSELECT_IN,
    _WRITE: pycurl.CSELECT_OUT,
    _READ | _WRITE: pycurl.CSELECT_IN | pycurl.CSELECT_OUT,
}
_FROM_CURL = {pycurl.POLL_IN: _READ, pycurl.POLL_OUT: _WRITE, pycurl.POLL_INOUT: _READ | _WRITE}

_NEVER = float("inf")
#: Reads after which a transfer is looked at, and looked at again: most pictures come in fewer.
_FIRST_LOOK, _LOOK_EVERY = 4, 8
#: `tcpi_bytes_received` in Linux's `struct tcp_info` (linux/tcp.h).
_RECEIVED = struct.Struct("@128xQ")

#: Held while libcurl works, and while this process is forked: a child must not be born with OpenSSL's locks taken.
WORKING = threading.RLock()


class Sockets:
    """The sockets that libcurl waits for, in a selector of their own.

    A connection that has answered is idle until the next request, mostly a moment later. Taking it out of the selector
    and putting it back would be two system calls a picture; so it stays in, and is taken out once the host closes it.
    When libcurl closes an idle connection, it does not say so. Its number then stands for nothing, or soon for another
    connection: so a number is trusted only if no connection was opened since it fell idle.

    In a forked child the connections live on, and so they do in the selector, even when libcurl has closed them here:
    from the first fork on nothing idle is left in.

    Args:
        keeps_idle: False if nobody counts `opened`.
    """

    def __init__(self, *, keeps_idle: bool) -> None:
        self._selector = selectors.DefaultSelector()
        self._watched: dict[int, int] = {}
        self._idle: dict[int, tuple[int, int]] = {}
        self._reads: dict[int, int] = {}
        self._before: dict[int, int] = {}
        self._keeps_idle = keeps_idle
        #: How many connections were opened so far.
        self.opened = 0

    def fileno(self) -> int:
        """Return the selector's file descriptor, which is ready when any socket is."""
        return self._selector.fileno()

    def watch(self, socket: int, events: int) -> None:
        """Wait for `events` at a socket from now on."""
        known = self._watched.get(socket)
        if known is None and socket in self._idle:
            known, opened = self._idle.pop(socket)
            if opened != self.opened:
                self._selector.unregister(socket)  # whatever it was, it may be another one now
                known = None
        if socket not in self._watched:
            self._reads[socket] = 0
        if known is None:
            self._selector.register(socket, events)
        elif known != events:
            self._selector.modify(socket, events)
        self._watched[socket] = events

    def idle(self, socket: int) -> None:
        """Wait for nothing at a socket for now."""
        events = self._watched.pop(socket, None)
        if events is None:
            return
        self._before.pop(socket, None)
        if self._keeps_idle:
            self._idle[socket] = events, self.opened
        else:
            self._selector.unregister(socket)

    def ready(self) -> list[tuple[int, int]]:
        """Return the sockets where something happened, and what."""
        found = []
        for key, events in self._selector.select(0):
            if key.fd in self._watched:
                found.append((key.fd, events))
            elif self._idle.pop(key.fd, None) is not None:
                self._selector.unregister(key.fd)
        return found

    def received(self, socket: int) -> int:
        """Count a read, and return how many bytes came in since the first look at this exchange, whatever they were.

        Most reads are not looked at: then it is 0. Only Linux tells how many bytes a connection has received; elsewhere
        it is always 0, and time alone is the bound.
        """
        reads = self._reads[socket] = self._reads[socket] + 1
        if (reads % _LOOK_EVERY and reads != _FIRST_LOOK) or sys.platform != "linux":
            return 0
        connection = sockets.socket(fileno=socket)
        try:
            found = connection.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, _RECEIVED.size)
        finally:
            connection.detach()
        received: int = _RECEIVED.unpack(found)[0]
        return received - self._before.setdefault(socket, received)

    def forget_idle(self) -> None:
        """Take idle sockets out of the selector, now and from now on."""
        self._keeps_idle = False
        while self._idle:
            self._selector.unregister(self._idle.popitem()[0])

    def close(self) -> None:
        """Close the selector; the sockets stay open."""
        self._selector.close()


@dataclass(slots=True)
class _UnderWay:
    done: asyncio.Future[int]
    clock: asyncio.TimerHandle
    left: float = 0.0


class CurlLoop:
    """Runs curl's easy handles; belongs to the running event loop. `close` it when done.

    Args:
        connections: to keep alive.
        max_bytes: that one transfer may receive, all that HTTP and TLS wrap around its body included. libcurl counts
            what it hands over, and a host that sends chunk extensions without end makes it hand over nothing.
        hears_of_sockets: whether `socket_opened` is called for every new connection.
    """

    def __init__(self, connections: int, max_bytes: int, *, hears_of_sockets: bool) -> None:
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        self._sockets = Sockets(keeps_idle=hears_of_sockets)
        self._transfers: dict[pycurl.Curl, _UnderWay] = {}
        self._deadline = _NEVER
        self._timer: asyncio.Handle | None = None
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._on_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._on_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, connections)
        self._loop.add_reader(self._sockets, self._on_ready)

    async def perform(self, curl: pycurl.Curl, seconds: float) -> int:
        """Run one transfer and return its curl error number, 0 if it went well.

        Args:
            curl: the handle.
            seconds: for everything but the time on `hold`; libcurl's own clock would not stand still.
        """
        done: asyncio.Future[int] = self._loop.create_future()
        clock = self._loop.call_later(seconds, self._finish, curl, pycurl.E_OPERATION_TIMEDOUT)
        self._transfers[curl] = _UnderWay(done, clock)
        with WORKING:
            self._multi.add_handle(curl)
        try:
            return await done
        finally:
            # Given up by who waited, unless it has ended.
            self._finish(curl, pycurl.E_ABORTED_BY_CALLBACK)

    def is_under_way(self, curl: pycurl.Curl) -> bool:
        """Say whether the handle's `perform` has not ended yet."""
        return curl in self._transfers

    def hold(self, curl: pycurl.Curl) -> None:
        """Pause a transfer, from its write callback, until `go_on`; its time stands still."""
        transfer = self._transfers[curl]
        transfer.left = transfer.clock.when() - self._loop.time()
        transfer.clock.cancel()
        curl.pause(pycurl.PAUSE_RECV)

    def go_on(self, curl: pycurl.Curl) -> None:
        """Resume a transfer that `hold` paused."""
        transfer = self._transfers[curl]
        transfer.clock = self._loop.call_later(transfer.left, self._finish, curl, pycurl.E_OPERATION_TIMEDOUT)
        with WORKING:
            curl.pause(pycurl.PAUSE_CONT)

    def close(self) -> None:
        """End every connection. Whoever still waits for a transfer has to be cancelled before."""
        if self._timer is not None:
            self._timer.cancel()
        with WORKING:
            self._multi.close()
        self._loop.remove_reader(self._sockets)
        self._sockets.close()

    def socket_opened(self) -> None:
        """Take note of a new connection; to be called for every one: see `Sockets`."""
        self._sockets.opened += 1

    def before_fork(self) -> None:
        """Prepare for a fork, while `WORKING` is held: see `Sockets`."""
        self._sockets.forget_idle()

    def inherited(self) -> list[Any]:
        """Close the selector in a forked child, and return what must never be freed there."""
        self._sockets.close()
        return [self._multi, *self._transfers]

    def _on_ready(self) -> None:
        with WORKING:
            for socket, events in self._sockets.ready():
                if events & _READ and self._sockets.received(socket) > self._max_bytes:
                    self._overflow(socket)
                else:
                    self._multi.socket_action(socket, _TO_CURL[events])
        self._collect()

    def _overflow(self, socket: int) -> None:
        for curl in list(self._transfers):
            if curl.getinfo(pycurl.ACTIVESOCKET) == socket:
                self._finish(curl, pycurl.E_FILESIZE_EXCEEDED)

    def _on_time(self) -> None:
        self._timer = None
        if self._deadline > self._loop.time() + 0.0005:
            # libcurl has put it off, or taken it back, since.
            self._arm()
            return
        self._deadline = _NEVER
        with WORKING:
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        self._collect()

    def _on_timer(self, milliseconds: int) -> None:
        before = self._deadline
        self._deadline = self._loop.time() + milliseconds / 1000 if milliseconds >= 0 else _NEVER
        # A call that comes too early costs less than moving it each time.
        if self._deadline < before or self._timer is None:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._deadline <= self._loop.time():
            self._timer = self._loop.call_soon(self._on_time)
        elif self._deadline != _NEVER:
            self._timer = self._loop.call_at(self._deadline, self._on_time)

    def _on_socket(self, what: int, socket: int, _multi: object, _data: object) -> None:
        if what == pycurl.POLL_REMOVE:
            self._sockets.idle(socket)
        else:
            self._sockets.watch(socket, _FROM_CURL[what])

    def _collect(self) -> None:
        more = 1
        while more:
            more, good, bad = self._multi.info_read()
            for curl in good:
                self._finish(curl, 0)
            for curl, number, _ in bad:
                self._finish(curl, number)

    def _finish(self, curl: pycurl.Curl, number: int) -> None:
        transfer = self._transfers.pop(curl, None)
        if transfer is None:
            return
        transfer.clock.cancel()
        with WORKING:
            self._multi.remove_handle(curl)
        if not transfer.done.done():
            transfer.done.set_result(number)
