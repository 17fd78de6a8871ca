"""Take in HTTP answers: a body that grows within bounds, its status and headers, and whether all of it came.

Some hosts send gzip or deflate unasked. It is unpacked as it comes, a step at a time: 30 kB can be 30 MB, and what
counts against every bound is what lies in memory.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from laion_face_builder.errors import PictureError
from laion_face_builder.images.reasons import Reason

_WHOLE_RANGE = re.compile(r"bytes\s+0-(\d{1,18})/(\d{1,18})\s*")


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer, its body read whole.

    Attributes:
        status: the status code.
        headers: their lines as they came, without the status line.
        body: unpacked.
    """

    status: int
    headers: list[bytes]
    body: bytes

    def raw(self, name: bytes) -> Iterator[bytes]:
        """Return the values of every header called `name` (lower case), as they came."""
        return header_values(self.headers, name)

    def values(self, name: bytes) -> Iterator[str]:
        """Return the values of every header called `name` (lower case), as text."""
        return (value.decode("latin-1") for value in self.raw(name))

    @property
    def is_success(self) -> bool:
        """Whether the body is what was asked for: any 2xx, but of parts (206) only one that is the whole picture."""
        return 200 <= self.status < 300 and (self.status != 206 or self._is_whole())

    def _is_whole(self) -> bool:
        ranges = [_WHOLE_RANGE.fullmatch(value.lower()) for value in self.values(b"content-range")]
        return bool(ranges) and all(found is not None and int(found[1]) + 1 == int(found[2]) for found in ranges)


def header_values(lines: Iterable[bytes], name: bytes) -> Iterator[bytes]:
    """Yield the values of every header called `name` (lower case) among these lines."""
    for line in lines:
        if line[: len(name)].lower() == name and line[len(name) : len(name) + 1] == b":":
            yield line[len(name) + 1 :].strip()


def asked_wait(values: Iterable[str]) -> float:
    """Return the seconds that a Retry-After header asks for, as a number or a date; 0 without a sensible one."""
    for value in values:
        if value.isdecimal():
            return float(value)
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            continue
    return 0.0


#: Asked with each piece that is kept; False says that there is no room for more.
Grow = Callable[[int], bool]
_CODINGS = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"})
#: As some servers name a coding over pictures that they send as they are, these are looked for first.
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
#: Enough to tell what a body is.
_START = 12
#: Unpacked at a time, bytes: the most that comes in one piece.
STEP = 1 << 18
#: Pieces that a body may come in, and one more for so many bytes: chunks of one byte cost more than they bring.
_MOST_PIECES, _BYTES_A_PIECE = 1_000, 64


class Body:
    """The body of one answer.

    Args:
        max_bytes: the most that it may have, packed and unpacked.
        grow: counts what is kept.
    """

    def __init__(self, max_bytes: int, grow: Grow) -> None:
        self._max_bytes, self._grow = max_bytes, grow
        self._pieces: list[bytes] = []
        self._count = self._arrived = self._kept = 0
        self._coding = ""
        self._packed: bytes | None = None
        self._unpacker: zlib._Decompress | None = None
        self._is_cut = False

    def begin(self, headers: Iterable[bytes]) -> None:
        """Read from an answer's headers how its body is packed."""
        found = b",".join(header_values(headers, b"content-encoding")).decode("latin-1").lower().split(",")
        self._coding = ", ".join(coding.strip() for coding in found if coding.strip() in _CODINGS)
        if self._coding:
            self._packed = b""

    def take(self, piece: bytes) -> bool:
        """Take what has arrived; return False if `drain` has to return True before more of it can come.

        Raises:
            PictureError: "too_large", "bad_response", "content_coding".
        """
        self._count += 1
        self._arrived += len(piece)
        if self._arrived > self._max_bytes:
            raise self._too_large()
        if self._count > _MOST_PIECES + self._arrived // _BYTES_A_PIECE:
            raise PictureError(Reason.BAD_RESPONSE, f"{self._arrived} bytes in {self._count} chunks")
        if self._packed is None:
            return self._keep(piece)
        self._packed += piece
        return (self._unpacker is None and len(self._packed) < _START) or self.drain()

    @property
    def is_behind(self) -> bool:
        """Whether some of what has arrived is not unpacked yet."""
        return self._unpacker is not None and not self._unpacker.eof and bool(self._packed or self._is_cut)

    def drain(self) -> bool:
        """Go on unpacking; return False if there is no room for what comes out.

        Raises:
            PictureError: "too_large", "content_coding".
        """
        if self._packed and self._unpacker is None:
            self._unpacker = self._choose(self._packed)
            if self._unpacker is None:
                start, self._packed = self._packed, None
                return self._keep(start)
        while self._unpacker is not None and self.is_behind:
            if not self._unpack_step(self._unpacker):
                return False
        return True

    def finish(self) -> bytes:
        """Return the whole body. Call it once `is_behind` is False.

        Raises:
            PictureError: "truncated", and as `drain`.
        """
        if self._packed and self._unpacker is None:
            self.drain()  # it is shorter than what was waited for
        if self._unpacker is not None and not self._unpacker.eof:
            raise PictureError(Reason.TRUNCATED, "the packed body ends early")
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def so_far(self) -> bytes:
        """Return what has come of the body, unpacked."""
        return b"".join(self._pieces)

    def _choose(self, start: bytes) -> zlib._Decompress | None:
        if start.startswith(_PICTURES) or start[4:8] == b"ftyp":
            return None
        if start.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(16 + zlib.MAX_WBITS)
        if self._coding not in ("gzip", "x-gzip", "deflate"):
            raise PictureError(Reason.CONTENT_CODING, f"{self._coding}, which was not asked for")
        if int.from_bytes(start[:2], "big") % 31 == 0 and start[0] & 15 == 8:
            return zlib.decompressobj()
        # "deflate" has meant both, with zlib's header and without one.
        return zlib.decompressobj(-zlib.MAX_WBITS) if self._coding == "deflate" else None

    def _unpack_step(self, unpacker: zlib._Decompress) -> bool:
        try:
            piece = unpacker.decompress(self._packed or b"", STEP)
        except zlib.error as error:
            raise PictureError(Reason.CONTENT_CODING, f"{self._coding}: {error}") from None
        self._packed = unpacker.unconsumed_tail
        self._is_cut = len(piece) == STEP  # all may be in, and not yet out
        return self._keep(piece)

    def _keep(self, piece: bytes) -> bool:
        self._kept += len(piece)
        if self._kept > self._max_bytes:
            raise self._too_large()
        self._pieces.append(piece)
        return self._grow(len(piece))

    def _too_large(self) -> PictureError:
        return PictureError(Reason.TOO_LARGE, f"more than {self._max_bytes} bytes")
