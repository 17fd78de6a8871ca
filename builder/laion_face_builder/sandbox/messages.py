"""What goes over the wire of the sandbox's servers: requests, answers, and the faults that spoil answers."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

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
