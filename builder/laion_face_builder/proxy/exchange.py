"""One client of the guarding proxy: its request, the connection to the host, and what is relayed.

One connection carries one request. It goes: head read and checked, a turn at the host waited for, the host resolved
and checked, the checked address connected to, the answer relayed within the bounds. One timer covers all of it.

**A cut body never looks whole.** With Content-Length it ends short; chunked it ends without its last piece; a body that
ends with its connection is passed on chunked. Tunnels are cut by bytes that no TLS record can hold, which every client
takes for an error: both a plain end and a reset look to Python's TLS like the end of the data (tried on 3.11).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from laion_face_builder.errors import PictureError
from laion_face_builder.proxy.limits import PIECE
from laion_face_builder.proxy.wire import (
    Answer,
    Refusal,
    Request,
    answer_head,
    chunk,
    parse_answer,
    parse_request,
    read_head,
    request_head,
)

if TYPE_CHECKING:
    from laion_face_builder.proxy.server import ProxyServer

#: More than the longest TLS record (16 kB and its packing): completes one that was cut, and spoils the next.
_SPOILED = bytes(17_000)
_SECONDS_TO_FLUSH = 5.0
#: A tunnel carries a request and TLS handshakes towards the host, never an upload.
_MOST_UPWARDS = 1 << 20

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Exchange:
    """One client's connection and the one request on it."""

    def __init__(self, server: ProxyServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.reader, self.writer = server, reader, writer
        self._answered = False  # from here on an error can only be a cut
        self._tunnelled = False
        self._whole = False
        self._late = False

    async def run(self) -> None:
        """Serves it, counts how it ended, and leaves nothing open."""
        self.server.exchanges.add(self)
        task = asyncio.current_task()
        timer = asyncio.get_running_loop().call_later(self.server.limits.timeout, self._expire, task)
        try:
            reason = await self._served()
        except asyncio.CancelledError:
            # Of a tunnel only the client knows whether it has all that it wanted.
            fetched = self._whole or (self._tunnelled and not self._late)
            reason = "ok" if fetched else "timeout" if self._late else "client_left"
        finally:
            timer.cancel()
            self.server.exchanges.discard(self)
        self.server.reasons[reason] += 1
        if reason == "timeout":
            self._refuse(Refusal("timeout"))
        # What the client has not fetched by the end of its time is cut too.
        if self._answered and (self._late or reason != "ok"):
            self.cut()
        else:
            self.writer.close()

    def cut(self) -> None:
        """Ends the client's connection so that it sees an error."""
        if not self._tunnelled:
            _abort(self.writer)
        elif not self.writer.transport.is_closing():
            self.writer.write(_SPOILED)
            self.writer.close()
            asyncio.get_running_loop().call_later(_SECONDS_TO_FLUSH, self.writer.transport.abort)

    def _expire(self, task: asyncio.Task[None] | None) -> None:
        if task is not None:
            self._late = True
            task.cancel()

    async def _served(self) -> str:
        try:
            await self._exchange()
            self._whole = True
            self.writer.close()
            await self.writer.wait_closed()
            return "ok"
        except Refusal as refusal:
            self._refuse(refusal)
            return refusal.reason
        except PictureError as error:
            self._refuse(Refusal(error.reason))
            return error.reason
        except OSError as error:
            reason = reason_of(error)
            self._refuse(Refusal(reason))
            return "ok" if self._whole else reason

    def _refuse(self, refusal: Refusal) -> None:
        if not self._answered and not self.writer.transport.is_closing():
            self.writer.write(refusal.as_bytes())

    async def _exchange(self) -> None:
        head, rest = await read_head(self.reader)
        request = parse_request(head, self.server.credentials)
        async with self.server.turns.at(request.host):
            origin = await self.server.connect(request)
            try:
                await (self._tunnel if request.method == "CONNECT" else self._relay)(request, origin, rest)
            finally:
                origin[1].transport.abort()

    async def _relay(self, request: Request, origin: Streams, _: bytes) -> None:
        reader, writer = origin
        writer.write(request_head(request, self.server.upstream_credentials))
        head, rest = await read_head(reader)
        answer = parse_answer(head, request.method)
        while answer.status < 200:
            head, rest = await read_head(reader, rest)
            answer = parse_answer(head, request.method)
        if (answer.length or 0) > self.server.limits.max_bytes:
            raise Refusal("too_large")
        await self._relay_body(answer, reader, rest)

    async def _relay_body(self, answer: Answer, reader: asyncio.StreamReader, piece: bytes) -> None:
        head = answer_head(answer)
        left, tail = answer.length, b""
        limits = self.server.limits
        bound = limits.max_raw_bytes if answer.chunked else limits.max_bytes
        pack = answer.length is None and not answer.chunked
        while left is None or left > 0:
            piece = piece or await reader.read(PIECE)
            if not piece:
                break
            piece = piece[:left]
            bound -= len(piece)
            if bound < 0:
                raise Refusal("too_large")
            left = None if left is None else left - len(piece)
            # The client may leave as soon as it has the last chunk, before the origin closes.
            tail = (tail + piece[-5:])[-5:]
            self._whole = answer.chunked and tail == b"0\r\n\r\n"
            self._answered = True
            await self._send(head + (chunk(piece) if pack else piece), len(piece))
            head = piece = b""
        if left:
            raise Refusal("incomplete")
        if head:
            self._answered = True
            self.writer.write(head)
        if pack:
            self.writer.write(chunk(b""))

    async def _send(self, data: bytes, count: int) -> None:
        self.server.bytes += count
        self.writer.write(data)
        await self.writer.drain()

    async def _tunnel(self, request: Request, origin: Streams, rest: bytes) -> None:
        reader, writer = origin
        start = await self._through_upstream(request, origin) if self.server.upstream else b""
        self._answered = self._tunnelled = True
        self.writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        upwards = asyncio.ensure_future(self._pump_up(rest, writer))
        try:
            bound = self.server.limits.max_raw_bytes
            while piece := start or await reader.read(PIECE):
                start = b""
                bound -= len(piece)
                if bound < 0:
                    raise Refusal("too_large")
                await self._send(piece, len(piece))
        finally:
            upwards.cancel()

    async def _pump_up(self, piece: bytes, writer: asyncio.StreamWriter) -> None:
        left = _MOST_UPWARDS
        with suppress(OSError):  # the other direction notices, and says so
            while piece := piece or await self.reader.read(PIECE):
                left -= len(piece)
                if left < 0:
                    self.cut()
                    return
                writer.write(piece)
                await writer.drain()
                piece = b""

    async def _through_upstream(self, request: Request, origin: Streams) -> bytes:
        credentials = self.server.upstream_credentials
        lines = [f"CONNECT {request.authority} HTTP/1.1", f"Host: {request.authority}"]
        lines += [f"Proxy-Authorization: {credentials}"] if credentials else []
        origin[1].write("\r\n".join([*lines, "\r\n"]).encode())
        head, rest = await read_head(origin[0])
        if parse_answer(head, "CONNECT").status != 200:
            raise Refusal("connection")
        return rest


def _abort(writer: asyncio.StreamWriter) -> None:
    """Ends a connection by a reset, which readers of plain HTTP see."""
    plug = writer.get_extra_info("socket")
    if plug is not None:
        with suppress(OSError):
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def connected(address: str, port: int) -> Streams:
    """A connection to `address`. Raises Refusal with the reason if there is none."""
    try:
        return await asyncio.open_connection(address, port, limit=PIECE)
    except OSError as error:
        raise Refusal(reason_of(error)) from error


def reason_of(error: OSError) -> str:
    """The short name of a failure of the network."""
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ConnectionError):
        return "reset"
    return "unreachable" if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH) else "connection"
