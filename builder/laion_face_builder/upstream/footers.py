"""The version of a Parquet file, taken from its footer: cheap, also from afar."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from laion_face_builder.errors import BadFile

_MAGIC = b"PAR1"

ReadAt = Callable[[int, int], bytes]


def footer_version(read_at: ReadAt, size: int, name: str) -> str:
    """ "footer:" and the SHA-256 of a Parquet file's footer and size.

    The footer lists the place and the statistics of every column chunk, so other content hardly ever has the same.

    Args:
        read_at: (start, stop) -> those bytes.

    Raises:
        BadFile: not a whole Parquet file.
    """
    tail = read_at(max(size - 8, 0), size)
    length = int.from_bytes(tail[:4], "little")
    if size < 12 or tail[4:] != _MAGIC or length > size - 12:
        raise not_parquet(name, f"{size} bytes that do not end in a Parquet footer")
    footer = read_at(size - 8 - length, size)
    return "footer:" + hashlib.sha256(footer + str(size).encode()).hexdigest()


def not_parquet(name: str, found: str) -> BadFile:
    """The error for a metadata file that is cut or something else."""
    return BadFile(
        name,
        found=found,
        expected="a whole Parquet file",
        way_out="Remove it and copy it again, or name another copy with metadata=.",
    )


def local_footer_version(path: Path) -> str:
    """The `footer_version` of a local file."""
    with path.open("rb") as file:

        def read_at(start: int, stop: int) -> bytes:
            file.seek(start)
            return file.read(stop - start)

        return footer_version(read_at, path.stat().st_size, str(path))
