"""One HTTP request and its answer, within bounds: no redirect is followed here and nothing is tried twice.

Chosen by measurement, libcurl does it (benchmarks/README.md). What it is told not to do matters as much: no
redirects, no proxy from the environment, no decompression, no cookies, no protocol but http and https.

Law 7 holds at the socket: `names.Resolver` gives checked addresses, libcurl is pinned to them, and whatever address it
is about to connect to is checked once more when it asks for the socket.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable

import certifi
import pycurl

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch.answers import Answer
from laion_face_builder.fetch.curl_loop import CurlLoop
from laion_face_builder.fetch.guard import wire_url
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.names import Resolver

#: Asked before each piece of a body is taken; False ends the exchange with "no_room".
Grow = Callable[[int], bool]

#: The exchange was ended because there is no room for what it brings: it was not the host's fault.
NO_ROOM = "no_room"

#: Taken from the socket at once. Larger pieces mean fewer returns into Python.
_PIECE = 128 << 10
_NAMES = {
    pycurl.E_URL_MALFORMAT: "bad_url",
    pycurl.E_COULDNT_RESOLVE_HOST: "dns",
    pycurl.E_COULDNT_RESOLVE_PROXY: "dns",
    pycurl.E_OPERATION_TIMEDOUT: "timeout",
    pycurl.E_PEER_FAILED_VERIFICATION: "tls",
    pycurl.E_SSL_CONNECT_ERROR: "tls",
    pycurl.E_SSL_ISSUER_ERROR: "tls",
    pycurl.E_PARTIAL_FILE: "incomplete",
    pycurl.E_FILESIZE_EXCEEDED: "too_large",
    pycurl.E_RECV_ERROR: "reset",
    pycurl.E_SEND_ERROR: "reset",
    pycurl.E_GOT_NOTHING: "reset",
}
_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EADDRNOTAVAIL)
_LITERAL = re.compile(r"[0-9.]+|.*:.*")


class Exchanges:
    """Makes requests; belongs to the running event loop. `close` it when done.

    Args:
        limits: the bounds.
        resolver: gives addresses that may be connected to.
    """

    def __init__(self, limits: FetchLimits, resolver: Resolver) -> None:
        self._limits, self._resolver = limits, resolver
        self._curls = CurlLoop(limits.concurrency, hears_of_sockets=limits.proxy is None)
        self._idle: list[_Handle] = []

    async def get(self, url: str, host: str, port: int, seconds: float, grow: Grow) -> Answer:
        """Asks for `url` and reads the answer whole.

        Args:
            url: an http(s) address that `guard.split_url` passed.
            host: what it said is the host.
            port: likewise.
            seconds: for everything, once the name is resolved.
            grow: asked before each piece of the body is taken.

        Raises:
            PictureError: "bad_url", "private_address", "dns", "refused", "unreachable", "connection", "tls", "timeout",
                "reset", "incomplete", "too_large", "other", or NO_ROOM.
        """
        pinned = [] if self._limits.proxy else await self._pinned(host, port)
        handle = self._idle.pop() if self._idle else _Handle(self._limits, self._curls.socket_opened)
        handle.prepare(wire_url(url), pinned, seconds, grow)
        number = await self._curls.perform(handle.curl)
        # Not reached when this was cancelled: a handle in an unknown state is not used again.
        try:
            return handle.answer(number)
        finally:
            handle.clear()
            self._idle.append(handle)

    def close(self) -> None:
        """Ends every connection; nobody may be waiting any more."""
        self._curls.close()
        for handle in self._idle:
            handle.curl.close()
        self._idle.clear()

    def before_fork(self) -> None:
        """As `CurlLoop.before_fork`."""
        self._curls.before_fork()

    def inherited(self) -> list[object]:
        """As `CurlLoop.inherited`."""
        return [*self._curls.inherited(), *self._idle]

    async def _pinned(self, host: str, port: int) -> list[str]:
        addresses = await self._resolver.resolve(host, port)
        if _LITERAL.fullmatch(host):
            return []
        name = host if host.isascii() else host.encode("idna").decode("ascii")
        # "+": it times out like any other answer instead of staying for good.
        return [f"+{name}:{port}:{','.join(f'[{a}]' if ':' in a else a for a in addresses)}"]


class _Handle:
    """A curl handle with its options set once, and what is arriving in it."""

    def __init__(self, limits: FetchLimits, opened: Callable[[], None]) -> None:
        self._limits, self._opened = limits, opened
        self._pieces: list[bytes] = []
        self._headers: list[bytes] = []
        self._has_pins = False
        self.curl = pycurl.Curl()
        for option, value in _options(limits).items():
            self.curl.setopt(option, value)
        self.curl.setopt(pycurl.WRITEFUNCTION, self._on_piece)
        self.curl.setopt(pycurl.HEADERFUNCTION, self._on_header)
        if limits.proxy is None:
            self.curl.setopt(pycurl.OPENSOCKETFUNCTION, self._on_connect)
        self.clear()

    def clear(self) -> None:
        """Forgets what has arrived."""
        self._pieces.clear()
        self._headers = []
        self._size = self._header_size = 0
        self._refusal = self._detail = ""

    def prepare(self, url: str, pinned: list[str], seconds: float, grow: Grow) -> None:
        """Points the handle at `url`."""
        self._grow = grow
        self.curl.setopt(pycurl.URL, url)
        self.curl.setopt(pycurl.TIMEOUT_MS, max(1, int(seconds * 1000)))
        if pinned or self._has_pins:
            self.curl.setopt(pycurl.RESOLVE, pinned)
            self._has_pins = bool(pinned)

    def answer(self, number: int) -> Answer:
        """What arrived.

        Raises:
            PictureError: the exchange failed.
        """
        if number == 0 and not self._refusal:
            status = int(self.curl.getinfo(pycurl.RESPONSE_CODE))
            redirect = self.curl.getinfo(pycurl.REDIRECT_URL) if 300 <= status < 400 else ""
            return Answer(status, self._headers, b"".join(self._pieces), redirect or "")
        raise PictureError(self._refusal or self._name_of(number), self._detail or self.curl.errstr())

    def _name_of(self, number: int) -> str:
        if number == pycurl.E_COULDNT_CONNECT:
            reason = self.curl.getinfo(pycurl.OS_ERRNO)
            return {errno.ECONNREFUSED: "refused"}.get(
                reason, "unreachable" if reason in _UNREACHABLE else "connection"
            )
        return _NAMES.get(number, "other")

    def _on_connect(self, _purpose: int, where: tuple[int, int, int, tuple[object, ...]]) -> socket.socket | int:
        family, kind, protocol, address = where
        host = str(address[0])
        if not self._limits.allow(host):
            self._refusal, self._detail = "private_address", f"the host is at {host}"
            return int(pycurl.SOCKET_BAD)
        self._opened()
        return _Handed(family, kind, protocol)

    def _on_header(self, line: bytes) -> int | None:
        self._header_size += len(line)
        if self._header_size > self._limits.max_header_bytes:
            self._refusal, self._detail = "too_large", f"more than {self._limits.max_header_bytes} bytes of headers"
            return 0
        if line.startswith(b"HTTP/"):
            self._headers = []  # of an interim answer
        else:
            self._headers.append(line)
        return None

    def _on_piece(self, piece: bytes) -> int | None:
        self._size += len(piece)
        if self._size > self._limits.max_bytes:
            self._refusal, self._detail = "too_large", f"more than {self._limits.max_bytes} bytes"
        elif not self._grow(len(piece)):
            self._refusal = NO_ROOM
        else:
            self._pieces.append(piece)
            return None
        return 0


class _Handed(socket.socket):
    """A socket for libcurl, which works on a duplicate of it: closed as soon as it is dropped, without a warning."""

    def __del__(self) -> None:
        self.close()


def _options(limits: FetchLimits) -> dict[int, object]:
    return {
        pycurl.NOSIGNAL: 1,
        pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
        pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
        pycurl.HTTP09_ALLOWED: 0,
        pycurl.FOLLOWLOCATION: 0,
        # "" keeps libcurl from reading the environment itself.
        pycurl.PROXY: limits.proxy or "",
        pycurl.NOPROXY: "",
        pycurl.USERAGENT: limits.user_agent,
        pycurl.HTTPHEADER: ["Accept: image/*,*/*;q=0.5", "Accept-Encoding: identity"],
        pycurl.SSL_VERIFYPEER: 1,
        pycurl.SSL_VERIFYHOST: 2,
        pycurl.CAINFO: limits.ca_file or os.environ.get("SSL_CERT_FILE") or certifi.where(),
        pycurl.CONNECTTIMEOUT_MS: max(1, int(limits.connect_seconds * 1000)),
        pycurl.MAXFILESIZE_LARGE: limits.max_bytes,
        pycurl.BUFFERSIZE: _PIECE,
    }
