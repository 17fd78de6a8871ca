"""Tell from a JPEG's structure whether it decodes, at a tenth of what decoding costs; in doubt there is no answer.

libjpeg raises for what it finds in markers and tables. Damage in the coded pixels themselves makes it warn and go on,
and Pillow passes such pictures too. So a walk over the markers that accepts only what common encoders write, with
libjpeg's own rules for each table (jdmarker.c, jdhuff.c, jdphuff.c, jdinput.c), knows that decoding cannot raise. All
else (other formats, odd samplings, 12 bits, CMYK, arithmetic coding, several pictures in one file, anything cut) is for
`pictures.inspect`, which decodes. The tests hold both against each other over mutated files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from PIL import Image

from laion_face_builder.errors import PictureError
from laion_face_builder.images import orientation, pictures
from laion_face_builder.images.pictures import Picture
from laion_face_builder.images.strict_pillow import STRICT
from laion_face_builder.images.structure import MAX_SCANNED, MAX_SCANS, MAX_SEGMENTS

_SOF_BASELINE, _SOF_PROGRESSIVE = (0xC0, 0xC1), 0xC2
_DHT, _SOS, _DQT, _DRI, _COM, _EOI = 0xC4, 0xDA, 0xDB, 0xDD, 0xFE, 0xD9
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE
#: Sampling factors of the first of three components over chroma of 1 x 1.
_SAMPLINGS = (0x11, 0x21, 0x12, 0x22)
#: libjpeg's own bound is 65,500.
_MAX_SIDE = 65_000
_MARKER = re.compile(rb"\xff(?=[^\x00\xd0-\xd7])")


def quick(data: bytes, *, max_pixels: int = pictures.MAX_PIXELS) -> Picture | None:
    """Return what `pictures.inspect` would say of this picture, or None where only decoding it can tell.

    Args:
        data: the bytes of a file.
        max_pixels: as of `pictures.inspect`; larger pictures get None.
    """
    if data[:3] != b"\xff\xd8\xff":
        return None
    frame = _Frame()
    try:
        _walk(data, frame)
    except (_InDoubt, IndexError):
        return None
    if not _is_small_enough(frame, max_pixels):
        return None
    orientation = _orientation(data, frame, max_pixels) if frame.has_metadata else 1
    return Picture(data, "JPEG", frame.width, frame.height, orientation) if orientation is not None else None


class _InDoubt(Exception):
    """Raised where only decoding can tell."""


@dataclass
class _Frame:
    width: int = 0
    height: int = 0
    is_progressive: bool = False
    #: Component id to the quantisation table it needs.
    components: dict[int, int] = field(default_factory=dict)
    tables: set[int] = field(default_factory=set)
    #: Huffman tables: class << 4 | number, as the file writes them.
    codes: set[int] = field(default_factory=set)
    #: Components that have had their first DC scan.
    started: set[int] = field(default_factory=set)
    has_metadata: bool = False


def _require(condition: object) -> None:
    if not condition:
        raise _InDoubt


def _walk(data: bytes, frame: _Frame) -> None:
    position, scans = 2, 0
    for _ in range(MAX_SEGMENTS):
        _require(data[position] == 0xFF)
        marker = data[position + 1]
        if marker == _EOI:
            _require(scans and frame.started == frame.components.keys())
            return
        end = position + 2 + (data[position + 2] << 8 | data[position + 3])
        _require(position + 4 <= end <= len(data))
        body = data[position + 4 : end]
        if marker == _SOS:
            scans += 1
            _require(scans == 1 or (frame.is_progressive and scans <= MAX_SCANS))
            _require(scans * frame.width * frame.height <= MAX_SCANNED)
            _scan(body, frame)
            position = _end_of_pixels(data, end)
        else:
            _require(scans == 0 or marker == _DHT)
            _segment(marker, body, frame)
            position = end
    raise _InDoubt


def _end_of_pixels(data: bytes, start: int) -> int:
    """Return where the next marker stands from `start` on: no stuffed byte, no restart.

    NumPy would be as fast, but lets go of the GIL and has to win it back from the consumer, for every picture.
    """
    found = _MARKER.search(data, start)
    return found.start() if found is not None else len(data)


def _segment(marker: int, body: bytes, frame: _Frame) -> None:
    if marker == _DHT:
        frame.codes |= _huffman_tables(body)
    elif marker == _DQT:
        _quantisation_tables(body, frame)
    elif marker in _SOF_BASELINE or marker == _SOF_PROGRESSIVE:
        _require(not frame.components)
        frame.is_progressive = marker == _SOF_PROGRESSIVE
        _frame_header(body, frame)
    elif marker == _DRI:
        _require(len(body) == 2)
    else:
        _require(marker == _COM or _APP0 <= marker <= 0xEF)
        _application(marker, body, frame)


def _application(marker: int, body: bytes, frame: _Frame) -> None:
    """Require that what Pillow reads of an application segment is whole."""
    if marker == _APP0:
        _require(not body.startswith(b"JFIF") or len(body) >= 14)
    elif marker == _APP1:
        frame.has_metadata = True
    elif marker == _APP2:
        _require(not body.startswith(b"MPF") and (not body.startswith(b"ICC_PROFILE") or len(body) >= 14))
    elif marker == 0xED:
        frame.has_metadata = True  # Photoshop's blocks: Pillow takes them apart when it opens the file
    elif marker == _APP14:
        _require(not body.startswith(b"Adobe") or len(body) >= 12)


def _quantisation_tables(body: bytes, frame: _Frame) -> None:
    _require(body and len(body) % 65 == 0 and len(body) <= 4 * 65)
    for start in range(0, len(body), 65):
        _require(body[start] <= 3)  # 8 bits, one of four
        frame.tables.add(body[start])


@lru_cache(1024)
def _huffman_tables(body: bytes) -> frozenset[int]:
    """Return which tables a segment brings. Most files have the standard's own four, so the answer is kept."""
    start, codes = 0, set()
    while start < len(body):
        number, counts = body[start], body[start + 1 : start + 17]
        _require(number & 0xEC == 0 and len(counts) == 16)
        total = sum(counts)
        symbols = body[start + 17 : start + 17 + total]
        _require(0 < total <= 256 and len(symbols) == total)
        # A DC symbol is a number of bits.
        _require(number & 0x10 or max(symbols) <= 15)
        _require(_fits(counts))
        codes.add(number)
        start += 17 + total
    return frozenset(codes)


def _fits(counts: bytes) -> bool:
    """Say whether there are codes enough of each length, none of them all ones."""
    code, last = 0, max(length for length, count in enumerate(counts) if count)
    for length, count in enumerate(counts[: last + 1], 1):
        code += count
        if count and code >= 1 << length:
            return False
        code <<= 1
    return True


def _frame_header(body: bytes, frame: _Frame) -> None:
    count = body[5]
    _require(body[0] == 8 and count in (1, 3) and len(body) == 6 + 3 * count)
    frame.height, frame.width = body[1] << 8 | body[2], body[3] << 8 | body[4]
    _require(0 < frame.height <= _MAX_SIDE and 0 < frame.width <= _MAX_SIDE)
    for start in range(6, len(body), 3):
        frame.components[body[start]] = body[start + 2]
    _require(len(frame.components) == count)
    _require(body[7] in _SAMPLINGS and all(body[start] == 0x11 for start in range(10, len(body), 3)))


def _scan(body: bytes, frame: _Frame) -> None:
    count = body[0]
    _require(0 < count <= len(frame.components) and len(body) == 4 + 2 * count)
    used = [(body[start], body[start + 1]) for start in range(1, 1 + 2 * count, 2)]
    _require(len({number for number, _ in used}) == count)
    for number, _ in used:
        _require(number in frame.components and frame.components[number] in frame.tables)
    first, last, high, low = body[-3], body[-2], body[-1] >> 4, body[-1] & 15
    if frame.is_progressive:
        _progressive_scan(used, first, last, high, low, frame)
    else:
        _require(count == len(frame.components) and (first, last, high, low) == (0, 63, 0, 0))
        _require(all(codes >> 4 in frame.codes and codes & 15 | 0x10 in frame.codes for _, codes in used))
        frame.started.update(number for number, _ in used)


def _progressive_scan(  # noqa: PLR0917 - the six numbers of a scan header
    used: list[tuple[int, int]], first: int, last: int, high: int, low: int, frame: _Frame
) -> None:
    _require(low <= 13 and (high == 0 or low == high - 1))
    if first == 0:
        _require(last == 0)
        _require(high or all(codes >> 4 in frame.codes for _, codes in used))
        frame.started.update(number for number, _ in used)
    else:
        _require(first <= last < 64 and len(used) == 1 and used[0][0] in frame.started)
        _require(used[0][1] & 15 < 4 and used[0][1] & 15 | 0x10 in frame.codes)


def _is_small_enough(frame: _Frame, max_pixels: int) -> bool:
    # Above Pillow's own bound, the user's to set, it warns, and then fails.
    return frame.width * frame.height <= min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)


def _orientation(data: bytes, frame: _Frame, max_pixels: int) -> int | None:
    """Return `Picture.orientation` as Pillow tells it; None if Pillow does not see the file as we do."""
    with STRICT:
        try:
            image = pictures.opened(data, max_pixels)
        except PictureError:
            return None
        if image.format != "JPEG" or image.size != (frame.width, frame.height):
            return None
        return pictures._orientation(image) if orientation.may_be_turned(data) else 1
