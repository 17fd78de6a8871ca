"""Turn index rows into plain Python values, a few at a time: what examples are made from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_ROWS_AT_ONCE = 32


class RowBatch:
    """Some index rows; their Python values are made, all at once, when one of them is first asked for.

    Until then they are columns. Rows wait by the thousand for their pictures, and that many dicts, lists and floats
    would be walked again and again by Python's garbage collector: half of what a stream's consumer thread did.
    """

    __slots__ = ("_rows", "_table", "urls")

    def __init__(self, table: pa.Table) -> None:
        self._table, self._rows = table, list[dict[str, Any]]()
        #: The addresses alone.
        self.urls: list[str | None] = table["url"].to_pylist()

    def __getitem__(self, place: int) -> dict[str, Any]:
        """Return one row as plain Python values."""
        if self._table is not None:
            self._rows, self._table = list(_as_dicts(self._table)), None
        return self._rows[place]

    def __len__(self) -> int:
        return len(self.urls)


def in_batches(table: pa.Table) -> Iterator[RowBatch]:
    """Yield the rows of `table` (with at least the column `url`), a few at a time, so that the first comes soon."""
    for start in range(0, table.num_rows, _ROWS_AT_ONCE):
        yield RowBatch(table.slice(start, _ROWS_AT_ONCE))


def _as_dicts(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield each row as a dict. Faces go by way of NumPy: Arrow makes every nested number an object first."""
    for batch in table.to_batches():
        columns = [_faces(column) if name == "faces" else column.to_pylist() for name, column in _columns(batch)]
        for values in zip(*columns, strict=True):
            yield dict(zip(batch.schema.names, values, strict=True))


def _columns(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.Array]]:
    return zip(batch.schema.names, batch.columns, strict=True)


def _faces(column: pa.ListArray) -> list[list[dict[str, Any]]]:
    flat = column.flatten()
    boxes = flat.field("box").flatten().to_numpy(zero_copy_only=False).reshape(-1, 4).tolist()
    landmarks = flat.field("landmarks").flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 5, 2).tolist()
    scores = flat.field("score").to_numpy(zero_copy_only=False).tolist()
    named = zip(boxes, landmarks, scores, strict=True)
    faces = [{"box": box, "landmarks": points, "score": score} for box, points, score in named]
    stops = itertools.accumulate(pc.list_value_length(column).to_pylist(), initial=0)
    return [faces[start:stop] for start, stop in itertools.pairwise(stops)]
