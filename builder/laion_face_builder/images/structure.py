"""Bounds on what a picture's file may hold, checked before any library opens it.

Libraries loop over what a file says of itself: a million comments, profiles that unpack to gigabytes, tables of items.
Here each format is walked once, in steps of its own blocks, and refused where there are more than pictures have. The
walks see what Pillow sees, block by block, so that nothing hides from them.

A TIFF file is made of directories, as are EXIF and MPF blocks. Each directory says where its values lie and where the
next directory is. Nothing keeps thousands of values from lying on the same bytes, or the last directory from leading
back to the first: older Pillows copy each value (4 MB of file: 33 s and 0.9 GB).

Of a JPEG, Pillow walks up to the first scan in Python, and keeps or takes apart what it meets: 8 MB of small EXIF
segments take it 42 s. libjpeg then decodes all scans, each over the whole picture, however little they say.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn

from PIL.JpegImagePlugin import MARKER

from laion_face_builder.errors import PictureError
from laion_face_builder.images.reasons import Reason

EXIF_NAME = b"Exif\0\0"
#: Pages of a scanned document; Pillow looks for each among all before it.
_MAX_DIRECTORIES = 1000
#: Over all directories; a photograph has about a hundred.
_MAX_ENTRIES = 1 << 14
#: Bytes of values beyond one for each byte of the block: some writers give wrong lengths.
_SPARE = 1 << 20
#: Writers have put the name twice; older Pillows take each away with a copy of the rest.
_MAX_NAMES = 8
#: Bytes of a value, by the type's number (TIFF 6.0, section 2; BigTIFF's 16 to 18).
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def check_exif(block: bytes) -> None:
    """Refuse an EXIF block, with or without its name in front, that would take too much to read.

    Pillow and OpenCV read a block's first directory, whatever that leads to.

    Raises:
        PictureError: "too_much_metadata".
    """
    start = 0
    while block.startswith(EXIF_NAME, start):
        start += len(EXIF_NAME)
        if start > _MAX_NAMES * len(EXIF_NAME):
            too_much("the name of an EXIF block over and over")
    check_directories(block[start:], is_chain=False)


def check_directories(block: bytes, *, is_chain: bool = True) -> None:
    """Refuse a TIFF file, or a block like one, whose directories are too many, too long, or a loop.

    A directory that is cut or wrong is not judged: reading ends there.

    Args:
        block: the bytes.
        is_chain: whether readers go on to the directory that comes next.

    Raises:
        PictureError: "too_much_metadata".
    """
    entries = values = 0
    for number, (count, here) in enumerate(islice(_directories(block), None if is_chain else 1)):
        entries += count
        values += sum(here)
        if number >= _MAX_DIRECTORIES:
            too_much(f"more than {_MAX_DIRECTORIES} directories")
        if entries > _MAX_ENTRIES:
            too_much(f"more than {_MAX_ENTRIES} entries in its directories")
        if values > len(block) + _SPARE:
            too_much(f"{values} bytes of values in {len(block)}")


def exif_of(info: Mapping[Any, Any]) -> bytes:
    """Return the EXIF block that Pillow would read of a picture with this `info`, b"" if there is none.

    Raises:
        ValueError: what should be a block in hexadecimal digits is not.
    """
    block = info.get("exif")
    if block is None and (digits := info.get("Raw profile type exif")):
        block = bytes.fromhex("".join(digits.split("\n")[3:]))
    return block if isinstance(block, bytes) else b""


def too_much(detail: str) -> NoReturn:
    """Raise the error that a file has too much metadata.

    Raises:
        PictureError: "too_much_metadata", always.
    """
    raise PictureError(Reason.TOO_MUCH_METADATA, detail)


def _directories(block: bytes) -> Iterator[tuple[int, Iterator[int]]]:
    """Yield for each directory in turn how many entries it has, and how many bytes each of them has read."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return
    # A BigTIFF, as Pillow tells one, has 64 bits where others have 32, and 64 for a directory's length.
    word, short, head = ("Q", "Q", 8) if block[2:3] == b"+" else ("L", "H", 4)
    length, address = struct.Struct(order + short), struct.Struct(order + word)
    entry = struct.Struct(order + "HH" + word * 2)
    try:
        (at,) = address.unpack_from(block, head)
        while at:
            (count,) = length.unpack_from(block, at)
            start = at + length.size
            there = min(count, (len(block) - start) // entry.size)
            found = entry.iter_unpack(block[start : start + min(there, _MAX_ENTRIES) * entry.size])
            yield there, (_bytes_read(block, address.size, *values[1:]) for values in found)
            (at,) = address.unpack_from(block, start + count * entry.size)
    except (struct.error, OverflowError):
        return


def _bytes_read(block: bytes, within: int, kind: int, count: int, place: int) -> int:
    size = _SIZES.get(kind, 0) * count
    return max(0, min(size, len(block) - place)) if size > within else 0


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
            raise PictureError(Reason.SLOW_DECODE, f"{scans} scans or more of {pixels} pixels")
    too_much(f"more than {MAX_SEGMENTS} segments between scans")


def _end(data: bytes, start: int) -> int:
    return start + max(4, 2 + int.from_bytes(data[start + 2 : start + 4], "big"))


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Chunks of PNG and WebP: so many, and one more for each 512 bytes. Encoders cut pixels at 8 kB and more.
_CHUNKS, _BYTES_A_CHUNK = 4096, 512
#: Of PNG, besides pixels and frames.
_MAX_NOTES = 1000
#: Pillow unpacks at most 1 MB of each.
_MAX_PACKED_NOTES = 64
#: Blocks of up to 255 bytes in front of a GIF's first frame: notes, profiles. Older Pillows copy a comment for each.
_MAX_GIF_BLOCKS = 8192
_MAX_GIF_COMMENTS = 1 << 18
#: Boxes of an AVIF at any depth, and the bytes of a table of items, in which libavif looks for each item among all.
_MAX_BOXES = 4096
_MAX_BOX_TABLE = 1 << 16
#: What holds boxes, and how many bytes come before them.
_BOXES_OF_BOXES = {
    b"meta": 4,
    **dict.fromkeys((b"iprp", b"ipco", b"moov", b"trak", b"mdia", b"minf", b"stbl", b"dinf", b"edts"), 0),
}
_BOX_TABLES = frozenset({b"iloc", b"iinf", b"iref", b"ipma"})


def check_structure(data: bytes, max_pixels: int | None = None) -> None:
    """Refuse a file with more or larger blocks than pictures have; linear in their number, which is bounded.

    Args:
        data: bytes of any kind; what begins like none of the formats passes.
        max_pixels: for formats that take memory for their pixels while their header is read.

    Raises:
        PictureError: "too_much_metadata", "slow_decode", "too_many_pixels" or "undecodable".
    """
    if data.startswith(b"\xff\xd8\xff"):
        check_jpeg(data)
    elif data.startswith(PNG_SIGNATURE):
        _check_png(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        check_pixels(_gif_size(data), max_pixels)
    elif data.startswith(b"RIFF"):
        check_pixels(webp_size(data), max_pixels)
        _check_webp(data)
    elif data.startswith((b"II", b"MM")):
        check_directories(data)
    elif data[4:8] == b"ftyp":
        _check_avif(data)


def check_pixels(size: tuple[int, int], most: int | None) -> None:
    """Refuse a picture of more than `most` pixels.

    Raises:
        PictureError: "too_many_pixels".
    """
    if most is not None and size[0] * size[1] > most:
        raise PictureError(Reason.TOO_MANY_PIXELS, f"{size[0]} x {size[1]}, more than {most}")


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of each chunk up to IEND."""
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">L4s", data, position)
        end = position + 12 + length
        yield kind, position, end
        if kind == b"IEND":
            return
        position = end


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end (padding included) of each chunk within the length that the file says."""
    position, last = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while position + 8 <= last:
        kind, length = struct.unpack_from("<4sL", data, position)
        end = position + 8 + length + length % 2
        yield kind, position, end
        position = end


def webp_size(data: bytes) -> tuple[int, int]:
    """Return the canvas of a WebP, (0, 0) if it is cut: older Pillows take the memory for it on opening."""
    if len(data) < 30:
        return 0, 0
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _check_png(data: bytes) -> None:
    most = _CHUNKS + len(data) // _BYTES_A_CHUNK
    notes = packed = 0
    for number, (kind, start, _) in enumerate(png_chunks(data)):
        # Where there are several, or something comes first, each library takes another for the picture's size.
        if (kind == b"IHDR") != (start == len(PNG_SIGNATURE)):
            raise PictureError(Reason.UNDECODABLE, "a PNG whose header is not its first chunk, or not its only one")
        notes += kind[:1].islower() and kind not in (b"fcTL", b"fdAT")
        packed += kind in (b"iCCP", b"zTXt", b"iTXt")
        if number >= most or notes > _MAX_NOTES or packed > _MAX_PACKED_NOTES:
            too_much(f"{number + 1} chunks or more, {notes} of them notes, {packed} compressed")


def _check_webp(data: bytes) -> None:
    most = _CHUNKS + len(data) // _BYTES_A_CHUNK
    for number, _ in enumerate(webp_chunks(data)):
        if number >= most:
            too_much(f"more than {most} chunks")


def _gif_size(data: bytes) -> tuple[int, int]:
    """Return the size that the first frame is drawn on, which grows with a frame that reaches beyond it."""
    try:
        frame = _first_frame(data)
        width, height = struct.unpack_from("<2H", data, 6)
        left, top, wide, high = struct.unpack_from("<4H", data, frame + 1)
    except (IndexError, struct.error):
        return 0, 0  # cut: no library finds a picture either
    return max(width, left + wide), max(height, top + high)


def _first_frame(data: bytes) -> int:
    """Return where the first frame begins.

    Raises:
        IndexError: there is no frame.
    """
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    blocks = comments = junk = 0
    while data[position] != 0x2C:
        if data[position] == 0x3B:
            raise IndexError
        if data[position] == 0x21:
            after, more = _after_extension(data, position)
            comments += (data[position + 1] == 0xFE) * (after - position)
        else:
            after, more = position + 1, 0
            junk += 1
        position, blocks = after, blocks + more
        if blocks > _MAX_GIF_BLOCKS or comments > _MAX_GIF_COMMENTS or junk > _MAX_JUNK:
            too_much(f"{blocks} blocks, {comments} bytes of comments and {junk} of nothing in front of the first frame")
    return position


def _after_extension(data: bytes, start: int) -> tuple[int, int]:
    """Return where an extension ends, and its number of blocks.

    This is Pillow's walk: an empty first block ends comments only.
    """
    position, size = _after_block(data, start + 2), data[start + 2]
    if data[start + 1] == 0xFE and size == 0:
        return position, 1
    if data[start + 1] == 0xFF and size >= 11 and data.startswith(b"NETSCAPE2.0", start + 3):
        position = _after_block(data, position)
    blocks, size = 1, 1
    while size and blocks <= _MAX_GIF_BLOCKS:
        size, position = data[position], _after_block(data, position)
        blocks += 1
    return position, blocks


def _after_block(data: bytes, position: int) -> int:
    return position + 1 + data[position]


def _check_avif(data: bytes) -> None:
    spans, boxes = [(0, len(data))], 0
    while spans:
        position, last = spans.pop()
        while position + 8 <= last:
            length, kind = struct.unpack_from(">L4s", data, position)
            head = 8
            if length == 1:
                length, head = int.from_bytes(data[position + 8 : position + 16], "big"), 16
            end = min(last, position + (length if length >= head else last))
            boxes += 1
            if boxes > _MAX_BOXES or (kind in _BOX_TABLES and end - position > _MAX_BOX_TABLE):
                too_much(f"{boxes} boxes, the last of {end - position} bytes")
            if kind in _BOXES_OF_BOXES:
                spans.append((position + head + _BOXES_OF_BOXES[kind], end))
            position = end
