"""Bounds on what a picture's file may hold, checked before any library opens it.

Libraries loop over what a file says of itself: a million comments, profiles that unpack to gigabytes, tables of items.
Here each format is walked once, in steps of its own blocks, and refused where there are more than pictures have. The
walks see what Pillow sees, block by block, so that nothing hides from them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from laion_face_builder.errors import PictureError
from laion_face_builder.images.directories import check_directories, too_much
from laion_face_builder.images.jpeg_segments import check_jpeg

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
#: A loop over bytes that belong to nothing, in Python.
_MAX_JUNK = 1 << 16


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
        raise PictureError("too_many_pixels", f"{size[0]} x {size[1]}, more than {most}")


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
            raise PictureError("undecodable", "a PNG whose header is not its first chunk, or not its only one")
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
