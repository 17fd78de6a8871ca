"""Segments of a JPEG, walked as the libraries walk them, and what their number and size may be.

Pillow walks up to the first scan in Python, and keeps or takes apart what it meets: 8 MB of small EXIF segments take it
42 s. libjpeg then decodes all scans, each over the whole picture, however little they say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from PIL.JpegImagePlugin import MARKER

from laion_face_builder.errors import PictureError
from laion_face_builder.images.directories import EXIF_NAME, check_directories, check_exif, too_much
from laion_face_builder.images.reasons import SLOW_DECODE

#: Segments up to the first scan. A 4 MB profile has 64 of them, a depth map of a telephone about 100.
MAX_SEGMENTS = 1000
#: A progressive JPEG has about ten scans.
MAX_SCANS = 256
#: Pixels times scans: a second of work.
MAX_SCANNED = 2_000_000_000

_SOS, _EOI, _DQT, _APP1, _APP2, _APP13 = 0xDA, 0xD9, 0xDB, 0xE1, 0xE2, 0xED
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: Markers of which Pillow reads no length.
_ALONE = frozenset(marker & 0xFF for marker, (_, _, reader) in MARKER.items() if reader is None)
_NEXT = re.compile(rb"\xff[\x01-\xfe]")
_NEXT_AFTER_PIXELS = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
#: Bytes between segments; each is a step of Pillow's.
_MAX_JUNK = 1 << 16
#: Bytes in quantisation tables and frame headers, of which Pillow makes lists; all that is of use is below 1 kB.
_MAX_TABLES = 1 << 14
#: Bytes of Photoshop's blocks.
_MAX_PHOTOSHOP = 1 << 21
_MAX_EXIF_SEGMENTS = 32


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment up to the header of the first scan, as Pillow sees them.

    Raises:
        PictureError: "too_much_metadata": there are too many segments, or too many bytes between them.
    """
    position, junk = 2, 0
    for _ in range(MAX_SEGMENTS):
        found = _NEXT.search(data, position)
        junk += (found.start() if found is not None else len(data)) - position
        if junk > _MAX_JUNK:
            too_much(f"{junk} bytes that belong to no segment")
        if found is None or 0xFF00 | data[found.start() + 1] not in MARKER:
            return
        start, marker = found.start(), data[found.start() + 1]
        position = start + 2 if marker in _ALONE else _end(data, start)
        yield marker, start, position
        if marker == _SOS:
            return
    too_much(f"more than {MAX_SEGMENTS} segments")


def check_jpeg(data: bytes) -> None:
    """Refuse a JPEG that would take too much to open or decode. Costs a few microseconds a segment.

    Raises:
        PictureError: "too_much_metadata", "slow_decode".
    """
    tables = photoshop = pixels = 0
    exif: list[bytes] = []
    for marker, start, end in segments(data):
        if marker in _FRAMES:
            height, width = data[start + 5 : start + 7], data[start + 7 : start + 9]
            pixels = max(pixels, int.from_bytes(height, "big") * int.from_bytes(width, "big"))
        if marker in _FRAMES or marker == _DQT:
            tables += end - start
        elif marker == _APP13:
            photoshop += end - start
        elif marker == _APP1 and data.startswith(EXIF_NAME, start + 4):
            exif.append(data[start + 4 + len(EXIF_NAME) * bool(exif) : end])
        elif marker == _APP2 and data.startswith(b"MPF\0", start + 4):
            check_directories(data[start + 8 : end], is_chain=False)
        elif marker == _SOS:
            _check_scans(data, end, pixels)
    if tables > _MAX_TABLES or photoshop > _MAX_PHOTOSHOP or len(exif) > _MAX_EXIF_SEGMENTS:
        too_much(f"{tables} bytes of tables, {photoshop} of Photoshop's blocks, {len(exif)} EXIF segments")
    check_exif(b"".join(exif))


def _check_scans(data: bytes, position: int, pixels: int) -> None:
    """Refuse too many scans, or segments between them; `position` is where the first scan's header ends."""
    scans = 1
    for _ in range(MAX_SEGMENTS):
        found = _NEXT_AFTER_PIXELS.search(data, position)
        if found is None or data[found.start() + 1] == _EOI:
            return
        marker = data[found.start() + 1]
        position = found.end() if marker == 0x01 else _end(data, found.start())
        scans += marker == _SOS
        if scans > MAX_SCANS or scans * pixels > MAX_SCANNED:
            raise PictureError(SLOW_DECODE, f"{scans} scans or more of {pixels} pixels")
    too_much(f"more than {MAX_SEGMENTS} segments between scans")


def _end(data: bytes, start: int) -> int:
    return start + max(4, 2 + int.from_bytes(data[start + 2 : start + 4], "big"))
