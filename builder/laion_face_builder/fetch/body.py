"""An HTTP body while it arrives: counted, unpacked if it is compressed, and never larger than there is room for.

Some hosts send gzip or deflate unasked. It is unpacked as it comes, a step at a time: 30 kB can be 30 MB, and what
counts against every bound is what lies in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

from laion_face_builder.errors import PictureError
from laion_face_builder.fetch.answers import header_values
from laion_face_builder.images.reasons import BAD_RESPONSE, CONTENT_CODING

#: Asked with each piece that is kept; False says that there is no room for more.
Grow = Callable[[int], bool]

_CODINGS = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"})
#: As some servers name a coding over pictures that they send as they are, these are looked for first.
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
#: Enough to tell what a body is.
_START = 12
#: Unpacked at a time, bytes.
_STEP = 1 << 18
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
            raise PictureError(BAD_RESPONSE, f"{self._arrived} bytes in {self._count} chunks")
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
            raise PictureError("truncated", "the packed body ends early")
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def _choose(self, start: bytes) -> zlib._Decompress | None:
        if start.startswith(_PICTURES) or start[4:8] == b"ftyp":
            return None
        if start.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(16 + zlib.MAX_WBITS)
        if self._coding not in ("gzip", "x-gzip", "deflate"):
            raise PictureError(CONTENT_CODING, f"{self._coding}, which was not asked for")
        if int.from_bytes(start[:2], "big") % 31 == 0 and start[0] & 15 == 8:
            return zlib.decompressobj()
        # "deflate" has meant both, with zlib's header and without one.
        return zlib.decompressobj(-zlib.MAX_WBITS) if self._coding == "deflate" else None

    def _unpack_step(self, unpacker: zlib._Decompress) -> bool:
        try:
            piece = unpacker.decompress(self._packed or b"", _STEP)
        except zlib.error as error:
            raise PictureError(CONTENT_CODING, f"{self._coding}: {error}") from None
        self._packed = unpacker.unconsumed_tail
        self._is_cut = len(piece) == _STEP  # all may be in, and not yet out
        return self._keep(piece)

    def _keep(self, piece: bytes) -> bool:
        self._kept += len(piece)
        if self._kept > self._max_bytes:
            raise self._too_large()
        self._pieces.append(piece)
        return self._grow(len(piece))

    def _too_large(self) -> PictureError:
        return PictureError("too_large", f"more than {self._max_bytes} bytes")
