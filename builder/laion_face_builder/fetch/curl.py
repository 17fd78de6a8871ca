"""Do one HTTP request with libcurl, within bounds: no redirect is followed here and nothing is tried twice.

Chosen by measurement, libcurl does it (benchmarks/README.md). What it is told not to do matters as much: no
redirects, no proxy from the environment, no decompression, no cookies, no protocol but http and https.

Only public addresses are reached (law 7), and that holds at the socket: `names.Resolver` gives checked addresses,
libcurl is pinned to them, and whatever address it is about to connect to is checked once more when it asks for the
socket.

libcurl's errors get the short names under which failures are counted.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

import certifi
import pycurl

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch import open_files
from laion_face_builder.fetch.curl_loop import CurlLoop
from laion_face_builder.fetch.http import STEP, Body, Response
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.names import Resolver
from laion_face_builder.fetch.open_files import NoFiles
from laion_face_builder.images.reasons import Reason

#: As curl/curl.h has them; pycurl gives them no names. The second is said of endless header lines.
_WEIRD_SERVER_REPLY, _TOO_LARGE = 8, 100
_NAMES = {
    pycurl.E_URL_MALFORMAT: Reason.BAD_URL,
    pycurl.E_COULDNT_RESOLVE_HOST: Reason.DNS,
    pycurl.E_COULDNT_RESOLVE_PROXY: Reason.DNS,
    pycurl.E_OPERATION_TIMEDOUT: Reason.TIMEOUT,
    pycurl.E_SSL_ISSUER_ERROR: Reason.TLS,
    pycurl.E_PARTIAL_FILE: Reason.INCOMPLETE,
    pycurl.E_FILESIZE_EXCEEDED: Reason.TOO_LARGE,
    pycurl.E_SEND_ERROR: Reason.RESET,
    pycurl.E_GOT_NOTHING: Reason.RESET,
    pycurl.E_BAD_CONTENT_ENCODING: Reason.CONTENT_CODING,
    # HTTP of before 1.0, or no HTTP at all; a NUL in a header.
    pycurl.E_UNSUPPORTED_PROTOCOL: Reason.BAD_RESPONSE,
    _WEIRD_SERVER_REPLY: Reason.BAD_RESPONSE,
    _TOO_LARGE: Reason.TOO_LARGE,
}
_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EADDRNOTAVAIL)
#: OpenSSL's X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT, …_LOCALLY and X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: nobody
#: whom we know has signed. Nearly always the host leaves out the certificates between; browsers fetch or remember them.
_NO_ISSUER = frozenset({2, 20, 21})
#: How OpenSSL and libcurl say that the connection broke while TLS was agreed on: the host's bad moment, not its papers.
_BROKE_OFF = ("reset by peer", "unexpected eof", "ssl_error_syscall", "ssl_error_zero_return", "broken pipe")


def name_of(curl: pycurl.Curl, number: int) -> str:
    """Return the short name of what ended a transfer.

    Args:
        curl: the handle, as the transfer left it.
        number: libcurl's error.
    """
    if number == pycurl.E_COULDNT_CONNECT:
        return _of_connecting(curl.getinfo(pycurl.OS_ERRNO))
    if number == pycurl.E_PEER_FAILED_VERIFICATION:
        return Reason.TLS_INCOMPLETE_CHAIN if curl.getinfo(pycurl.SSL_VERIFYRESULT) in _NO_ISSUER else Reason.TLS
    if number == pycurl.E_SSL_CONNECT_ERROR:
        said = said_by(curl).lower()
        return Reason.RESET if any(words in said for words in _BROKE_OFF) else Reason.TLS
    if number == pycurl.E_RECV_ERROR:
        # libcurl's word for broken chunks, too, and for headers beyond its own bounds: then no system call has failed.
        is_broken = curl.getinfo(pycurl.OS_ERRNO) or "ssl" in said_by(curl).lower()
        return Reason.RESET if is_broken else Reason.BAD_RESPONSE
    return _NAMES.get(number, Reason.OTHER)


def said_by(curl: pycurl.Curl) -> str:
    """Return libcurl's words for what ended a transfer; they may quote bytes of the host's that are no text."""
    return str(curl.errstr_raw(), errors="replace")


def _of_connecting(reason: int) -> str:
    if reason == errno.ECONNREFUSED:
        return Reason.REFUSED
    return Reason.UNREACHABLE if reason in _UNREACHABLE else Reason.CONNECTION


#: Taken from the socket at once. Larger pieces mean fewer returns into Python.
_PIECE = 128 << 10
#: Errors that libcurl may have for want of a file: a socket's copy, the certificates.
_WANT_FILES = frozenset({pycurl.E_COULDNT_CONNECT, pycurl.E_SSL_CACERT_BADFILE, pycurl.E_FAILED_INIT})


class Intake(Protocol):
    """Takes in the body that arrives."""

    def grow(self, count: int) -> bool:
        """Count bytes that are kept; return False if there is no room for more."""

    def hold(self, go_on: Callable[[], None]) -> None:
        """Keep, after `grow` returned False, what to call once there is room."""


class CurlTransfer:
    """A curl handle with its options set once; used for one exchange after the other.

    Args:
        limits: the bounds.
        opened: called for every new connection.
        hold: called when there is no room for more; it has to see to it that nothing arrives from then on.
    """

    def __init__(self, limits: FetchLimits, opened: Callable[[], None], hold: Callable[[CurlTransfer], None]) -> None:
        self._limits, self._opened, self._hold = limits, opened, hold
        #: Counts exchanges: what was meant for one must not reach the next.
        self.exchange = 0
        self.curl = pycurl.Curl()
        for option, value in _options(limits).items():
            self.curl.setopt(option, value)
        self.curl.setopt(pycurl.WRITEFUNCTION, self._on_piece)
        self.curl.setopt(pycurl.HEADERFUNCTION, self._on_header)
        if limits.proxy is None:
            self.curl.setopt(pycurl.OPENSOCKETFUNCTION, self._on_connect)
        self._unpinned: list[str] = []
        self._start_of: int | None = None

    def prepare(self, url: str, pinned: list[str], intake: Intake, start_of: int | None) -> None:
        """Point the handle at `url`, for a new exchange; see `Exchanges.get`."""
        self.intake = intake
        self._body = Body(self._limits.options.max_bytes if start_of is None else start_of + STEP, intake.grow)
        self._has_enough = False
        if start_of != self._start_of:
            self._start_of = start_of
            self.curl.setopt(pycurl.MAXFILESIZE_LARGE, 0 if start_of else self._limits.options.max_bytes)
            self.curl.setopt(pycurl.HTTPHEADER, _headers("text/plain, application/json" if start_of else "image/*"))
        self._headers: list[bytes] = []
        self._header_size = 0
        self._has_body = False
        self._failure: Exception | None = None
        self.curl.setopt(pycurl.URL, url)
        if pinned or self._unpinned:
            # What was pinned last goes, so that there are no more pins than handles. libcurl looks through all of them
            # at each request: with those of thousands of hosts that was a sixth of the fetching thread's time.
            self.curl.setopt(pycurl.RESOLVE, self._unpinned + pinned)
            self._unpinned = [f"-{':'.join(pin.split(':', 2)[:2])}" for pin in pinned]

    def clear(self) -> None:
        """Forget what has arrived, and that there was somebody to take it."""
        self.exchange += 1
        del self.intake, self._body, self._headers, self._failure

    @property
    def is_behind(self) -> bool:
        """Whether something has arrived that waits for room."""
        return self._failure is None and self._body.is_behind

    def drain(self) -> bool:
        """Go on with what has arrived; return False if there is still no room. A failure shows in `answer`."""
        try:
            return self._failure is not None or self._body.drain()
        except PictureError as error:
            self._failure = error
            return True

    def answer(self, number: int) -> Response:
        """Return the answer that arrived.

        Args:
            number: libcurl's error, 0 if there was none.

        Raises:
            PictureError: the exchange failed.
        """
        if self._failure is not None:
            raise self._failure
        if self._has_enough:
            return Response(int(self.curl.getinfo(pycurl.RESPONSE_CODE)), self._headers, self._body.so_far())
        if number:
            if number in _WANT_FILES and open_files.are_gone():
                raise NoFiles
            raise PictureError(name_of(self.curl, number), said_by(self.curl) or f"libcurl's error {number}")
        return Response(int(self.curl.getinfo(pycurl.RESPONSE_CODE)), self._headers, self._body.finish())

    def _on_connect(self, _purpose: int, where: tuple[int, int, int, tuple[object, ...]]) -> socket.socket | int:
        family, kind, protocol, address = where
        host = str(address[0])
        if not self._limits.allow(host):
            self._failure = PictureError(Reason.PRIVATE_ADDRESS, f"the host is at {host}")
            return int(pycurl.SOCKET_BAD)
        try:
            handed = _Handed(family, kind, protocol)
        except OSError as error:
            if not open_files.are_gone(error):
                raise
            self._failure = NoFiles()
            return int(pycurl.SOCKET_BAD)
        self._opened()
        return handed

    def _on_header(self, line: bytes) -> int | None:
        self._header_size += len(line)
        if self._header_size > self._limits.max_header_bytes:
            self._failure = PictureError(
                Reason.TOO_LARGE, f"more than {self._limits.max_header_bytes} bytes of headers"
            )
            return 0
        if line.startswith(b"HTTP/"):
            self._headers = []  # of an interim answer
        else:
            self._headers.append(line)
        return None

    def _on_piece(self, piece: bytes) -> int | None:
        # What is raised in here libcurl could only print. It is raised again where the answer is asked for.
        if self._failure is not None:
            return 0
        try:
            if not self._has_body:
                self._has_body = True
                self._body.begin(self._headers)
            if not self._body.take(piece):
                self._hold(self)
        except PictureError as error:
            # libcurl breaks off then, and the rest is left.
            self._has_enough = self._start_of is not None and error.reason == Reason.TOO_LARGE
            self._failure = None if self._has_enough else error
            return 0
        except Exception as error:
            self._failure = error
            return 0
        return None


class _Handed(socket.socket):
    """A socket for libcurl, which works on a duplicate of it: closed as soon as it is dropped, without a warning."""

    def __del__(self) -> None:
        with suppress(AttributeError):  # there was no file left for it
            self.close()


def _options(limits: FetchLimits) -> dict[int, object]:
    return {
        pycurl.NOSIGNAL: 1,
        pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
        pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
        pycurl.HTTP09_ALLOWED: 0,
        pycurl.FOLLOWLOCATION: 0,
        # "" keeps libcurl from reading the environment itself, no_proxy too.
        pycurl.PROXY: limits.proxy or "",
        pycurl.NOPROXY: "",
        pycurl.USERAGENT: limits.user_agent,
        pycurl.HTTPHEADER: _headers("image/*"),
        pycurl.SSL_VERIFYPEER: 1,
        pycurl.SSL_VERIFYHOST: 2,
        pycurl.CAINFO: limits.ca_file or os.environ.get("SSL_CERT_FILE") or certifi.where(),
        pycurl.CONNECTTIMEOUT_MS: max(1, int(limits.connect_seconds * 1000)),
        pycurl.MAXFILESIZE_LARGE: limits.options.max_bytes,
        pycurl.BUFFERSIZE: _PIECE,
    }


def _headers(kinds: str) -> list[str]:
    return [f"Accept: {kinds},*/*;q=0.5", "Accept-Encoding: identity"]


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
        self._idle: list[CurlTransfer] = []

    async def get(
        self, url: str, host: str, port: int, seconds: float, intake: Intake, *, start_of: int | None = None
    ) -> Response:
        """Ask for `url` and return the answer, read whole. While there is no room for it, its time stands still.

        Args:
            url: as a `WebAddress` has it.
            host: likewise.
            port: likewise.
            seconds: for everything, once the name is resolved.
            intake: takes in the body.
            start_of: bytes of the body that are enough, however many there are; None: it has to be whole, and no more
                than a picture may have.

        Raises:
            PictureError: "bad_url", "private_address", "dns", "refused", "unreachable", "connection", "tls",
                "tls_incomplete_chain", "timeout", "reset", "incomplete", "too_large", "bad_response", "content_coding",
                "truncated", "other".
        """
        pinned = [] if self._limits.proxy else await self._pinned(host, port)
        transfer = self._idle.pop() if self._idle else CurlTransfer(self._limits, self._curls.socket_opened, self._hold)
        transfer.prepare(url, pinned, intake, start_of)
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

    def _hold(self, transfer: CurlTransfer) -> None:
        self._curls.hold(transfer.curl)
        transfer.intake.hold(partial(self._go_on, transfer, transfer.exchange))

    def _go_on(self, transfer: CurlTransfer, exchange: int) -> None:
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
