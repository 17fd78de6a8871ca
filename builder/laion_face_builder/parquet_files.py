"""Read Parquet files of our own: every page against its checksum, and what the footer says of rows against itself.

A flipped bit in a page is found by the checksum that was written with it. A footer has none, but says how many rows
there are in several places, and what is read has to have as many.

What it says of columns comes from `parquet_footer`: pyarrow would end the process where a footer is damaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.errors import BadFile
from laion_face_builder.files import require_readable
from laion_face_builder.parquet_footer import OpenParquet
from laion_face_builder.shown import short

_WAY_OUT = (
    "It has changed since it was written. If `laion-face remove` ran meanwhile, start again; else remove it, and run "
    "the command that made it again (prepare, download)."
)


@contextmanager
def opened(source: Any, name: str | os.PathLike[str] | None = None, **how: Any) -> Iterator[OpenParquet]:
    """Open a file of ours, and check its pages as they are read.

    Args:
        source: its path, or an open file that is called `name`.
        how: further arguments of `pyarrow.parquet.ParquetFile`.

    Raises:
        BadFile: it is damaged, also if that is found while the block reads from it; DiskError: it cannot be read.
    """
    try:
        with OpenParquet(source, **how) as file:
            require_agreement(file.metadata)
            yield file
    except Exception as error:
        require_readable(source if name is None else name, error)
        if not is_damage(error):
            raise
        raise damaged(source if name is None else name, short(error, 200)) from error


def table_of(source: Any, columns: Sequence[str] | None = None, **how: Any) -> pa.Table:
    """Read a whole file of ours, or some of its columns, in the order given.

    Raises:
        BadFile: it is damaged, or lacks a column.
    """
    with opened(source, **how) as file:
        names = file.schema_arrow.names
        if missing := [name for name in columns or () if name not in names]:
            raise damaged(source, f"no column {', '.join(missing)}")
        table = file.read(columns=None if columns is None else list(columns))
        if table.num_rows != file.metadata.num_rows:
            raise damaged(source, f"{table.num_rows} rows, its footer says {file.metadata.num_rows}")
        return table if columns is None else table.select(columns)


def rows_in(source: Any) -> int:
    """Return how many rows a file of ours has, by its footer.

    Raises:
        BadFile: it is damaged.
    """
    with opened(source) as file:
        return int(file.metadata.num_rows)


def require_agreement(metadata: pq.FileMetaData) -> None:
    """Check that a footer counts the same rows wherever it counts them.

    Raises:
        pyarrow.ArrowInvalid: it does not.
    """
    counted = sum(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    if counted != metadata.num_rows:
        raise pa.ArrowInvalid(f"{metadata.num_rows} rows in all, but {counted} in its row groups")


def is_damage(error: Exception) -> bool:
    """Say whether an error speaks of a file's content: of the system's own errors Arrow's alone have no number."""
    if isinstance(error, OSError):
        return type(error) is OSError and error.errno is None
    return isinstance(error, pa.ArrowException | UnicodeDecodeError | MemoryError)


def damaged(name: str | os.PathLike[str], found: str) -> BadFile:
    """Return the error for a file of ours that is not as it was written."""
    return BadFile(name, found=found, expected="what laion-face wrote there", way_out=_WAY_OUT)
