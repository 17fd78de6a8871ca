"""Read pictures out of Parquet files, which is how img2dataset's output_format parquet keeps them."""

from __future__ import annotations

import os
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from laion_face_builder.images.reasons import Reason
from laion_face_builder.parquet_footer import OpenParquet


class _Group(NamedTuple):
    """The pictures of one row group of a table, from row `start` on."""

    table: Path
    column: str
    start: int
    pictures: pa.ChunkedArray


class PictureTables:
    """Gives pictures by table, column and row; the row group that was read last is kept."""

    def __init__(self) -> None:
        self._group: _Group | None = None

    def get(self, table: Path, column: str, row: int) -> bytes | str:
        """Return the picture; the status of its sample if it cannot be read."""
        group = self._group
        is_kept = group is not None and group[:2] == (table, column)
        if group is None or not is_kept or not group.start <= row < group.start + len(group.pictures):
            try:
                group = self._group = _read(table, column, row)
            except FileNotFoundError:
                return Reason.TAR_MISSING
            except (OSError, IndexError, KeyError, pa.ArrowException, MemoryError):
                return Reason.TAR_UNREADABLE
        return group.pictures[row - group.start].as_py() or b""


def _read(table: Path, column: str, row: int) -> _Group:
    os.stat(table)  # pyarrow's own error of a missing file has no kind of its own
    with OpenParquet(table) as file:
        stops = list(accumulate(file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)))
        number = bisect_right(stops, row)
        start = stops[number] - file.metadata.row_group(number).num_rows
        return _Group(table, column, start, file.read_row_group(number, columns=[column])[column])
