"""Check that a file can be Parquet: a cut copy, or a web page in its place, has no footer at its end."""

from __future__ import annotations

from pathlib import Path

from laion_face_builder.errors import BadFile

_MAGIC = b"PAR1"


def check_footer(path: Path) -> None:
    """Check the last 8 bytes of a Parquet file.

    Raises:
        BadFile: there is no footer, or one that is larger than the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - 8, 0))
        tail = file.read()
    if size < 12 or tail[4:] != _MAGIC or int.from_bytes(tail[:4], "little") > size - 12:
        raise BadFile(
            path,
            found=f"{size} bytes that do not end in a Parquet footer",
            expected="a whole Parquet file",
            way_out="Remove it and copy it again, or name another copy with metadata=.",
        )
