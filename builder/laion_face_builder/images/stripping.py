"""Take out of a picture's file whatever is not its pixels, without touching one: places, serial numbers, comments.

What stays is listed, so that what nobody has heard of goes too: pixels, tables, transparency, animation, and what says
how the colours are meant (ICC profiles, Adobe's marker, gamma). A second picture or a film behind the first one goes.

- JPEG: JFIF's header, Adobe's, ICC profiles; no EXIF, XMP, IPTC, comments, previews, other applications' segments;
- PNG: the chunks of `_PNG_KEPT`;
- WebP: the chunks of `_WEBP_KEPT`.

Everything else (GIF, BMP, TIFF, AVIF) has no such list, and is written anew.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from laion_face_builder.errors import PictureError
from laion_face_builder.images import modes
from laion_face_builder.images.reasons import Reason
from laion_face_builder.images.structure import PNG_SIGNATURE, png_chunks, webp_chunks

#: The extension of each format that is kept as it is.
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_SOS, _EOI = 0xDA, 0xD9
_APPLICATIONS, _COMMENT = range(0xE0, 0xF0), 0xFE
_KEPT_APPLICATIONS = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
#: Markers without a length: restarts, the beginning, and one that arithmetic coders write.
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_NEXT = re.compile(rb"\xff+[\x01-\xfe]")
_AFTER_PIXELS = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
#: Markers of JFIF, with a preview that the header says the size of.
_JFIF_WITHOUT_PREVIEW = 16
_PNG_KEPT = frozenset(
    {
        b"IHDR",
        b"PLTE",
        b"IDAT",
        b"IEND",
        b"tRNS",
        b"cHRM",
        b"gAMA",
        b"iCCP",
        b"sBIT",
        b"sRGB",
        b"cICP",
        b"mDCV",
        b"cLLI",
    }
    | {b"bKGD", b"pHYs", b"acTL", b"fcTL", b"fdAT"}
)
_WEBP_KEPT = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP", b"ANIM", b"ANMF"})
#: In the extended header: there is EXIF, there is XMP.
_WEBP_METADATA = 0x08 | 0x04


def stripped(data: bytes) -> tuple[bytes, str]:
    """Return the picture without metadata, and the extension of its format: "jpg", "png" or "webp".

    Args:
        data: a picture that decodes, and that nobody turns (`pictures.neutral`): what would turn it goes.

    Raises:
        PictureError: "undecodable": it is none of the formats that are kept, and cannot be written anew.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return b"".join(_jpeg(data)), EXTENSIONS["JPEG"]
    if data.startswith(PNG_SIGNATURE):
        kept = (data[start:end] for kind, start, end in png_chunks(data) if kind in _PNG_KEPT)
        return b"".join((PNG_SIGNATURE, *kept)), EXTENSIONS["PNG"]
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        body = b"".join((b"WEBP", *_webp(data)))
        return b"RIFF" + struct.pack("<L", len(body)) + body, EXTENSIONS["WEBP"]
    simple = modes.simple(data)
    if simple is data:
        raise PictureError(Reason.UNDECODABLE, f"starts with {data[:16]!r}")
    return stripped(simple)


def _jpeg(data: bytes) -> Iterator[bytes]:
    """Yield what is kept, up to the first end of a picture."""
    yield data[:2]
    position = 2
    while (found := _NEXT.search(data, position)) is not None:
        start, marker = found.end() - 2, data[found.end() - 1]
        if marker == _EOI:
            yield data[start : start + 2]
            return
        if marker in _ALONE:
            yield data[start : start + 2] if marker != 0xD8 else b""
            position = start + 2
            continue
        position = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        if marker == _SOS:
            after = _AFTER_PIXELS.search(data, position)
            position = after.start() if after is not None else len(data)
        yield _kept(marker, data[start:position])


def _kept(marker: int, segment: bytes) -> bytes:
    if marker == _COMMENT:
        return b""
    if marker not in _APPLICATIONS:
        return segment
    name = _KEPT_APPLICATIONS.get(marker)
    if name is None or not segment.startswith(name, 4):
        return b""
    if name == b"JFIF\0" and len(segment) >= 4 + _JFIF_WITHOUT_PREVIEW - 2:
        # Its preview goes: the size of none.
        return segment[:2] + struct.pack(">H", _JFIF_WITHOUT_PREVIEW) + segment[4:16] + b"\0\0"
    return segment


def _webp(data: bytes) -> Iterator[bytes]:
    for kind, start, end in webp_chunks(data):
        if kind == b"VP8X" and start + 8 < len(data):
            yield data[start : start + 8] + bytes([data[start + 8] & ~_WEBP_METADATA]) + data[start + 9 : end]
        elif kind in _WEBP_KEPT:
            yield data[start:end]
