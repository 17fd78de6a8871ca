"""Serve a small HTTP/1.1 server on loopback whose answers can go wrong on the n-th call; the stand-ins are built on it.

`LoopbackServer.answer` turns a `Request` into an `Answer`; planted `Fault`s then spoil it; counting is done here too.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import sys
import threading
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

if TYPE_CHECKING:
    from typing_extensions import Self

_PIECE = 1 << 16


@dataclass(frozen=True)
class Answer:
    """What is sent back.

    Args:
        body: the bytes, or the file that holds them.
        delay: seconds before the first byte.
        drip: bytes a second; None is as fast as it goes.
        cut_after: the connection ends after that many bytes of the body, whatever Content-Length promised.
        flip: the lowest bit of this byte of the whole body is turned.
        endless: the body is sent again and again until the client has had enough.
        span: first and last (exclusive) byte that are sent; set by `ranged`.
    """

    status: int = 200
    body: bytes | Path = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float | None = None
    cut_after: int | None = None
    flip: int | None = None
    endless: bool = False
    span: tuple[int, int] | None = None

    @property
    def whole(self) -> int:
        """Bytes of the whole body."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.stat().st_size

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes to send, in pieces."""
        start, stop = self.span or (0, self.whole)
        while True:
            for at in range(start, stop, _PIECE):
                yield self._piece(at, min(at + _PIECE, stop))
            if not self.endless or start == stop:
                return

    def _piece(self, start: int, stop: int) -> bytes:
        if isinstance(self.body, bytes):
            piece = self.body[start:stop]
        else:
            with self.body.open("rb") as file:
                file.seek(start)
                piece = file.read(stop - start)
        if self.flip is not None and start <= self.flip < stop:
            at = self.flip - start
            piece = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
        return piece


def redirect(location: str, status: int = 302) -> Answer:
    """Return an answer that sends the client to `location`."""
    return Answer(status, headers={"Location": location})


def ranged(answer: Answer, wanted: str | None, if_range: str | None = None) -> Answer:
    """Cut `answer` to the one byte range that a Range header names; 416 where it begins beyond the end."""
    size = answer.whole
    answer = replace(answer, headers={**answer.headers, "Accept-Ranges": "bytes"})
    if not wanted or (if_range and if_range != answer.headers.get("ETag")):
        return answer
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, stop = (int(first), min(int(last or size) + 1, size)) if first else (max(size - int(last), 0), size)
    if start >= size:
        return Answer(416, headers={"Content-Range": f"bytes */{size}"})
    headers = {**answer.headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return replace(answer, status=206, headers=headers, span=(start, stop))


@dataclass
class Request:
    """One request as it came in: `received` bytes of body came, `sent` went back; the log keeps no PUT's body."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""
    received: int = 0
    sent: int = 0

    @property
    def split(self) -> SplitResult:
        """The target in its pieces."""
        return urlsplit(self.target)

    @property
    def path(self) -> str:
        """The path, unquoted."""
        return unquote(self.split.path)

    @property
    def token(self) -> str:
        """The bearer's token; "" if none came."""
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    @property
    def query(self) -> dict[str, str]:
        """The query's names and values."""
        return dict(parse_qsl(self.split.query))


@dataclass
class Fault:
    """Spoils answers to requests whose path contains `path`: of those, the `calls`-th ones since it was planted.

    `spoil` holds fields of `Answer` to replace: `{"status": 503}`, `{"cut_after": 1000}`, `{"flip": 7}`. A status of
    400 and up goes without the body and the headers of the true answer, but for those named in `spoil`.

    What goes wrong before there is an answer: `unheard`, the request is not acted on (else a planted 503 comes after
    the commit that it denies); `take`, after that many bytes of its body the connection ends, and it is not acted on;
    `take_rate`, its body is taken in at so many bytes a second.
    """

    path: str
    spoil: Mapping[str, Any]
    calls: Container[int] = (1,)
    method: str = "GET"
    unheard: bool = False
    take: int | None = None
    take_rate: float | None = None
    seen: int = 0

    def applied(self, answer: Answer) -> Answer:
        """Return the answer as the fault spoils it."""
        if self.spoil.get("status", 0) >= 400:
            return Answer(**{"body": b"planted fault", **self.spoil})
        return replace(answer, **self.spoil)


class LoopbackServer(ThreadingHTTPServer):
    """Serves on 127.0.0.1 and an ephemeral port, each connection in a thread, from `start()` to `stop()`.

    `log` keeps every request; `plant` makes some go wrong. A context manager that starts and stops.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.stopping = threading.Event()
        self.open: set[socket.socket] = set()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name=type(self).__name__, daemon=True)

    def answer(self, request: Request) -> Answer:
        """Return what `request` gets, faults aside."""
        raise NotImplementedError

    def url(self, host: str = "127.0.0.1") -> str:
        """Return the address of the root, without a slash at its end; `localhost` reaches the same server."""
        return f"http://{host}:{self.server_port}"

    def start(self) -> Self:
        """Start to serve."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop, end open connections, and wait for their threads."""
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        with self._changed:
            for connection in self.open:
                _hang_up(connection)
            self._changed.wait_for(lambda: not self.open, timeout=5)
        self.server_close()

    def plant(
        self,
        path: str,
        *,
        calls: Container[int] = (1,),
        method: str = "GET",
        unheard: bool = False,
        take: int | None = None,
        take_rate: float | None = None,
        **spoil: Any,
    ) -> Fault:
        """Make the `calls`-th requests (from 1) for paths with `path` in them go wrong; see `Fault`."""
        fault = Fault(path, spoil, calls, method, unheard, take, take_rate)
        self.faults.append(fault)
        return fault

    def count(self, path: str = "", method: str | None = None) -> int:
        """Count the requests for paths with `path` in them."""
        return sum(path in request.path and method in (None, request.method) for request in self.log)

    def bytes_sent(self, path: str = "") -> int:
        """Count the bytes of body that went out for paths with `path` in them."""
        return sum(request.sent for request in self.log if path in request.path)

    def bytes_received(self, path: str = "", method: str | None = None) -> int:
        """Count the bytes of body that came in for paths with `path` in them."""
        fitting = (request for request in self.log if path in request.path and method in (None, request.method))
        return sum(request.received for request in fitting)

    def faults_of(self, request: Request) -> list[Fault]:
        """Return the planted faults whose turn it is; every fault that fits counts the request."""
        due = []
        with self._changed:
            for fault in self.faults:
                if fault.path in request.path and fault.method == request.method:
                    fault.seen += 1
                    due += [fault] if fault.seen in fault.calls else []
        return due

    def server_bind(self) -> None:
        """Bind without http.server's look-up of the full host name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Note the connection before its thread starts."""
        with self._changed:
            self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection."""
        super().shutdown_request(request)
        with self._changed:
            self.open.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what is a bug of ours, but not that a client hung up."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and a small body leave in one packet
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        request = Request(self.command, self.path, {name.lower(): text for name, text in self.headers.items()})
        self.server.log.append(request)
        faults = self.server.faults_of(request)
        if not self._take_body(request, faults):
            self.close_connection = True
            return _hang_up(self.connection)
        answer = Answer() if any(fault.unheard for fault in faults) else self.server.answer(request)
        for fault in faults:
            answer = fault.applied(answer)
        if request.method == "PUT":
            request.body = b""  # an upload would stay in memory twice
        if answer.delay:
            self.server.stopping.wait(answer.delay)
        self._send(request, answer)

    def _take_body(self, request: Request, faults: list[Fault]) -> bool:
        """Read the body; False if the client went away in the middle of it, or a fault ends the connection there."""
        length = int(self.headers.get("Content-Length") or 0)
        stop = min([length, *(fault.take for fault in faults if fault.take is not None)])
        rate = min([fault.take_rate for fault in faults if fault.take_rate], default=None)
        pieces = []
        while request.received < stop:
            piece = self.rfile.read(min(stop - request.received, max(1, int(rate / 20)) if rate else 1 << 20))
            if not piece or (rate and self.server.stopping.wait(len(piece) / rate)):
                return False
            request.received += len(piece)
            pieces.append(piece)
        request.body = b"".join(pieces)
        return not any(fault.take is not None for fault in faults)

    do_HEAD = do_POST = do_PUT = do_GET  # the server's `answer` looks at the method

    def _send(self, request: Request, answer: Answer) -> None:
        start, stop = answer.span or (0, answer.whole)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.endless:
            self.close_connection = True
        elif "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if request.method != "HEAD":
            self._send_body(request, answer)

    def _send_body(self, request: Request, answer: Answer) -> None:
        for piece in _dripping(answer) if answer.drip else answer.pieces():
            left = len(piece) if answer.cut_after is None else answer.cut_after - request.sent
            request.sent += min(len(piece), left)
            self.wfile.write(piece[:left])
            if answer.drip or answer.endless:
                self.wfile.flush()
            if left < len(piece) or self.server.stopping.wait(len(piece) / answer.drip if answer.drip else 0):
                self.wfile.flush()
                self.close_connection = True
                return _hang_up(self.connection)

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing to stderr: `log` keeps the requests."""


def _dripping(answer: Answer) -> Iterator[bytes]:
    size = max(1, int((answer.drip or 1) / 20))
    for piece in answer.pieces():
        yield from (piece[at : at + size] for at in range(0, len(piece), size))


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it may have gone already
        connection.shutdown(socket.SHUT_RDWR)
