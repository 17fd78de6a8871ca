"""One curl handle, and the answer that arrives in it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import certifi
import pycurl

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch import open_files
from laion_face_builder.fetch.answers import Answer
from laion_face_builder.fetch.body import Body
from laion_face_builder.fetch.curl_errors import name_of
from laion_face_builder.fetch.limits import FetchLimits
from laion_face_builder.fetch.open_files import NoFiles

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


class Transfer:
    """A curl handle with its options set once; used for one exchange after the other.

    Args:
        limits: the bounds.
        opened: called for every new connection.
        hold: called when there is no room for more; it has to see to it that nothing arrives from then on.
    """

    def __init__(self, limits: FetchLimits, opened: Callable[[], None], hold: Callable[[Transfer], None]) -> None:
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

    def prepare(self, url: str, pinned: list[str], intake: Intake) -> None:
        """Point the handle at `url`, for a new exchange."""
        self.intake = intake
        self._body = Body(self._limits.max_bytes, intake.grow)
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

    def answer(self, number: int) -> Answer:
        """Return the answer that arrived.

        Args:
            number: libcurl's error, 0 if there was none.

        Raises:
            PictureError: the exchange failed.
        """
        if self._failure is not None:
            raise self._failure
        if number:
            if number in _WANT_FILES and open_files.are_gone():
                raise NoFiles
            raise PictureError(name_of(self.curl, number), self.curl.errstr() or f"libcurl's error {number}")
        return Answer(int(self.curl.getinfo(pycurl.RESPONSE_CODE)), self._headers, self._body.finish())

    def _on_connect(self, _purpose: int, where: tuple[int, int, int, tuple[object, ...]]) -> socket.socket | int:
        family, kind, protocol, address = where
        host = str(address[0])
        if not self._limits.allow(host):
            self._failure = PictureError("private_address", f"the host is at {host}")
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
            self._failure = PictureError("too_large", f"more than {self._limits.max_header_bytes} bytes of headers")
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
        pycurl.HTTPHEADER: ["Accept: image/*,*/*;q=0.5", "Accept-Encoding: identity"],
        pycurl.SSL_VERIFYPEER: 1,
        pycurl.SSL_VERIFYHOST: 2,
        pycurl.CAINFO: limits.ca_file or os.environ.get("SSL_CERT_FILE") or certifi.where(),
        pycurl.CONNECTTIMEOUT_MS: max(1, int(limits.connect_seconds * 1000)),
        pycurl.MAXFILESIZE_LARGE: limits.max_bytes,
        pycurl.BUFFERSIZE: _PIECE,
    }
