"""A small HTTP/1.1 server on loopback whose answers can go wrong on the n-th call; the stand-ins are built on it.

`LoopbackServer.answer` turns a `Request` into an `Answer`; planted `Fault`s then spoil it; counting is done here too.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import sys
import threading
from collections.abc import Container, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any

from laion_face_builder.sandbox.messages import Answer, Fault, Request

if TYPE_CHECKING:
    from typing_extensions import Self


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
