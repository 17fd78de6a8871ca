"""Checks whether two index parts have the same rows, whoever wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.schema import INDEX

Numbers = npt.NDArray[Any]
_FLAT = ("part", "similarity", "n_faces", "max_face_score", "max_face_size")
_TEXTS = ("url", "caption", "license", "nsfw")


@dataclass(frozen=True)
class Compared:
    """Rows that both have; rows set aside, since their ids come more than once; whether the order is the same."""

    rows: int
    aside: int
    ordered: bool

    def __str__(self) -> str:
        order = "in the same order" if self.ordered else "in ANOTHER ORDER"
        return f"{self.rows:,} rows, {order}; {self.aside:,} set aside"

    def __add__(self, other: Compared) -> Compared:
        return Compared(self.rows + other.rows, self.aside + other.aside, self.ordered and other.ordered)


def compare(expected: Path, found: Path) -> Compared:
    """Compare the rows of two index parts.

    Ids that come more than once are set aside: only the faces tell which of their rows is right.

    Raises:
        SystemExit: a row or a value differs, or there are other columns.
    """
    ids = [_ids(path) for path in (expected, found)]
    several = np.concatenate([_repeated(each) for each in ids])
    kept = [np.flatnonzero(~np.isin(each, several)) for each in ids]
    order = [rows[np.argsort(each[rows], kind="stable")] for each, rows in zip(ids, kept, strict=True)]
    values = [_values(path, rows) for path, rows in zip((expected, found), order, strict=True)]
    for name in values[0]:
        if not _same(values[0][name], values[1][name]):
            raise SystemExit(f"{found}: {name} differs from {expected}")
    ordered = np.array_equal(ids[0][kept[0]], ids[1][kept[1]])
    return Compared(len(kept[0]), max(len(each) - len(rows) for each, rows in zip(ids, kept, strict=True)), ordered)


def _ids(path: Path) -> Numbers:
    with pq.ParquetFile(path) as file:
        if file.schema_arrow.names != INDEX.names:
            raise SystemExit(f"{path}: columns {file.schema_arrow.names}, not {INDEX.names}")
        ids: Numbers = file.read(["sample_id"])["sample_id"].to_numpy()
    return ids


def _repeated(ids: Numbers) -> Numbers:
    ids = np.sort(ids)
    repeated: Numbers = ids[1:][ids[1:] == ids[:-1]]
    return repeated


def _values(path: Path, rows: Numbers) -> dict[str, Any]:
    """Return columns of these rows; sizes as smaller and larger side, as only we turn those that are swapped."""
    table = pq.read_table(path)
    sides = np.sort(np.stack([table[name].to_numpy()[rows] for name in ("width", "height")]), axis=0)
    texts = {name: table[name].cast(pa.large_string()).take(pa.array(rows)) for name in _TEXTS}
    numbers = {name: table[name].to_numpy()[rows] for name in ("sample_id", *_FLAT)}
    return numbers | texts | {"sizes": sides} | _faces(table["faces"], rows)


def _faces(column: pa.ChunkedArray, rows: Numbers) -> dict[str, Numbers]:
    """Return the faces of these rows, by way of NumPy: Arrow's `take` is wrong on such lists."""
    counts = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks])
    starts, wanted = np.cumsum(counts) - counts, counts[rows]
    which = np.repeat(starts[rows] - (np.cumsum(wanted) - wanted), wanted) + np.arange(wanted.sum())
    flat = [chunk.flatten() for chunk in column.chunks]
    boxes = np.concatenate([_floats(chunk.field("box")) for chunk in flat]).reshape(-1, 4)
    landmarks = np.concatenate([_floats(chunk.field("landmarks")) for chunk in flat]).reshape(-1, 10)
    scores = np.concatenate([_floats(chunk.field("score")) for chunk in flat])
    return {"counts": wanted, "boxes": boxes[which], "landmarks": landmarks[which], "scores": scores[which]}


def _floats(array: pa.Array) -> Numbers:
    while not pa.types.is_floating(array.type):
        array = array.flatten()
    floats: Numbers = array.to_numpy()
    return floats


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
    return bool(one.equals(other))
