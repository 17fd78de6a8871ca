"""Read on in row groups larger than what is asked for: the batch that was decoded last is kept for the next time."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq


class Cursor:
    """A place in an open Parquet file. To read on decodes nothing twice; to go back begins a row group again.

    Args:
        bounds: first row and the row after the last of each row group.
        columns: what is read.
        rows: how many are decoded at once.
        made: (first row, batch) -> the rows as they are wanted; applied to whole batches, before they are cut.
    """

    def __init__(
        self,
        parquet: pq.ParquetFile,
        bounds: Sequence[tuple[int, int]],
        columns: Sequence[str],
        rows: int,
        made: Callable[[int, pa.RecordBatch], pa.RecordBatch],
    ) -> None:
        self._parquet, self._bounds, self._columns, self._rows, self._made = parquet, bounds, list(columns), rows, made
        self._group = -1
        self._decoded: Iterator[pa.RecordBatch] = iter(())
        self._first = self._stop = 0
        self._held: pa.RecordBatch | None = None

    def read(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield rows start … stop of the file, in pieces."""
        while start < stop:
            held = self._reach(start)
            end = min(stop, self._stop)
            yield held.slice(start - self._first, end - start)
            start = end

    def _reach(self, row: int) -> pa.RecordBatch:
        """Return the batch with `row` in it."""
        if self._held is not None and self._first <= row < self._stop:
            return self._held
        group = bisect.bisect_right(self._bounds, row, key=lambda bound: bound[0]) - 1
        self._held = None
        if group != self._group or row < self._stop:
            self._stop = self._bounds[group][0]
            self._decoded = self._parquet.iter_batches(self._rows, row_groups=[group], columns=self._columns)
        self._group = -1  # begun again, should this fail
        while row >= self._stop:
            batch = next(self._decoded)
            self._first, self._stop = self._stop, self._stop + len(batch)
        self._held = self._made(self._first, batch)
        self._group = group
        return self._held
