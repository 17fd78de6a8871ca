"""How much reading the directories of a TIFF file would take, or of EXIF and MPF blocks, which are made like one.

Each directory says where its values lie and where the next directory is. Nothing keeps thousands of values from lying
on the same bytes, or the last directory from leading back to the first: older Pillows copy each value (4 MB of
file: 33 s and 0.9 GB).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn

from laion_face_builder.errors import PictureError
from laion_face_builder.images.reasons import TOO_MUCH_METADATA

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
    raise PictureError(TOO_MUCH_METADATA, detail)


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
