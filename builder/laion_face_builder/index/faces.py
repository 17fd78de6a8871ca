"""Hold the faces of a part in memory, as flat arrays, to be joined to rows by sample id.

The metadata's order is random with respect to the ids, so all of a part's faces have to be at hand: about 0.2 GB.

Flat columns are made from the shapes that detectors write. Accepted is (box, landmarks, score) or {"box", "kps" or
"landmarks", "score"}; box 4 and landmarks 5 x 2 numbers as arrays, lists or tensors; score a number (batch-face,
RetinaFace; newer versions of it give dicts). All must be finite.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from laion_face_builder.errors import BadFile
from laion_face_builder.index.ids import as_ids
from laion_face_builder.parquet_files import opened
from laion_face_builder.parquet_footer import OpenParquet
from laion_face_builder.schema import DETECTIONS, FACE, FACES

_SHAPES: dict[str, tuple[int, ...]] = {"box": (4,), "landmarks": (5, 2), "score": ()}
_COLUMNS: dict[str, tuple[type, tuple[int, ...]]] = {
    "ids": (np.int64, ()),
    "counts": (np.int64, ()),
    "boxes": (np.float32, _SHAPES["box"]),
    "landmarks": (np.float32, _SHAPES["landmarks"]),
    "scores": (np.float32, _SHAPES["score"]),
}


@dataclass(frozen=True)
class FaceColumns:
    """The faces of n samples, m in all.

    Attributes:
        ids: int64[n].
        counts: int64[n], how many faces each sample has.
        boxes: float32[m, 4], x1 y1 x2 y2 in pixels.
        landmarks: float32[m, 5, 2].
        scores: float32[m].
    """

    ids: np.ndarray
    counts: np.ndarray
    boxes: np.ndarray
    landmarks: np.ndarray
    scores: np.ndarray

    @classmethod
    def concat(cls, pieces: Iterable[FaceColumns]) -> FaceColumns:
        """Join pieces, each taken in before the next is asked for: a part's columns are in memory once only."""
        # Not lists of arrays: their memory would be scattered, and not go back to the system once they are joined.
        joined = {name: bytearray() for name in _COLUMNS}
        for piece in pieces:
            for name, whole in joined.items():
                whole.extend(np.ascontiguousarray(getattr(piece, name)).reshape(-1).view(np.uint8).data)
        return cls(
            **{
                name: np.frombuffer(joined[name], dtype).reshape(-1, *shape)
                for name, (dtype, shape) in _COLUMNS.items()
            }
        )

    def sorted_by_id(self) -> FaceColumns:
        """Return the samples by ascending id; of an id that comes more than once the last one is kept."""
        return self.take(self.order())

    def order(self) -> np.ndarray:
        """Return which rows `sorted_by_id` has, in its order: int64."""
        order = np.argsort(self.ids, kind="stable")
        ids = self.ids[order]
        return np.asarray(order[np.append(ids[1:] != ids[:-1], True)[: len(ids)]])

    def take(self, rows: np.ndarray) -> FaceColumns:
        """Return the samples of these rows, with their faces."""
        counts = self.counts[rows]
        # Row numbers of the faces: those of each sample follow one another.
        faces = np.repeat(self._starts[rows] - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        return FaceColumns(self.ids[rows], counts, self.boxes[faces], self.landmarks[faces], self.scores[faces])

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.asarray(np.cumsum(self.counts) - self.counts)

    def as_arrow(self) -> list[pa.Array]:
        """Return the columns of `schema.DETECTIONS`."""
        points = FACE.field("landmarks").type
        pairs = pa.FixedSizeListArray.from_arrays(pa.array(self.landmarks.reshape(-1)), type=points.value_type)
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(self.boxes.reshape(-1)), type=FACE.field("box").type),
            pa.FixedSizeListArray.from_arrays(pairs, type=points),
            pa.array(self.scores),
        ]
        offsets = np.zeros(len(self.counts) + 1, np.int32)
        np.cumsum(self.counts, out=offsets[1:])
        faces = pa.StructArray.from_arrays(columns, fields=list(FACE))
        faces = pa.ListArray.from_arrays(pa.array(offsets), faces, type=DETECTIONS.field("faces").type)
        return [pa.array(self.ids), faces]

    def check(self, path: Path) -> FaceColumns:
        """Return these columns if all their numbers are finite.

        Raises:
            BadFile: a number is NaN or infinite; names the sample id.
        """
        for name, values in (("box", self.boxes), ("landmarks", self.landmarks), ("score", self.scores)):
            finite = np.isfinite(values)
            if not finite.all():
                face = int(finite.all(axis=tuple(range(1, values.ndim))).argmin())
                sample = int(np.searchsorted(np.cumsum(self.counts), face, side="right"))
                raise _bad(path, int(self.ids[sample]), f"{name} {values[face].tolist()}", "finite numbers")
        return self


def from_items(path: Path, items: Mapping[object, object]) -> FaceColumns:
    """Make the columns of {sample id: faces}.

    Raises:
        BadFile: a key is not a sample id, or a face has not the shape above; names the sample id.
    """
    ids = as_ids(list(items))
    if not isinstance(ids, np.ndarray):
        raise _bad(path, ids, "that as a sample id", "whole numbers from 0 to 2**53")
    counts = np.empty(len(ids), np.int64)
    columns: tuple[list[object], list[object], list[object]] = ([], [], [])
    boxes, landmarks, scores = columns
    for sample, faces in enumerate(items.values()):
        if not isinstance(faces, list | tuple):
            raise _bad(path, int(ids[sample]), f"a {type(faces).__name__}", "a list of faces")
        counts[sample] = len(faces)
        for face in faces:
            box, points, score = _parts(path, int(ids[sample]), face)
            boxes.append(box)
            landmarks.append(points)
            scores.append(score)
    owners = np.repeat(ids, counts)
    arrays = [_stack(path, name, column, owners) for name, column in zip(_SHAPES, columns, strict=True)]
    return FaceColumns(ids, counts, *arrays).check(path)


def _parts(path: Path, sample_id: int, face: object) -> Iterable[object]:
    if isinstance(face, list | tuple) and len(face) == 3:
        return face
    if isinstance(face, Mapping):
        points = face.get("kps", face.get("landmarks"))
        if "box" in face and "score" in face and points is not None:
            return face["box"], points, face["score"]
        keys = reprlib.repr(list(face))
        raise _bad(path, sample_id, f"a face with keys {keys}", "box, kps (or landmarks) and score")
    length = f" of {len(face)}" if isinstance(face, list | tuple) else ""
    raise _bad(path, sample_id, f"a face that is a {type(face).__name__}{length}", "(box, landmarks, score)")


def _stack(path: Path, name: str, values: list[object], owners: np.ndarray) -> np.ndarray:
    """Return `values`, one for each face, as one float32 array."""
    shape = _SHAPES[name]
    if not values:
        return np.empty((0, *shape), np.float32)
    # Looked at before NumPy may: it would walk lists however deep they are, and copy arrays however large.
    for value, owner in zip(values, owners, strict=True):
        if not _has_shape(value, shape):
            is_array = isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
            found = f"of shape {value.shape}" if is_array else reprlib.repr(value)  # type: ignore[attr-defined]
            raise _bad(path, int(owner), f"{name} {found}", f"numbers of shape {shape}")
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is reported as such
        return _as_array(values).astype(np.float32)


def _has_shape(value: object, shape: tuple[int, ...]) -> bool:
    """Tell whether a value is numbers of this shape, as an array, or as lists and tuples of arrays or numbers."""
    if isinstance(value, np.ndarray):
        return value.shape == shape and value.dtype.kind in "fiu"
    if shape:
        if not isinstance(value, list | tuple) or len(value) != shape[0]:
            return False
        return _has_floats(value, shape) or all(_has_shape(one, shape[1:]) for one in value)
    return isinstance(value, int | float | np.integer | np.floating) and type(value) is not bool


def _has_floats(value: Sequence[Any], shape: tuple[int, ...]) -> bool:
    """Tell whether a row is plain floats, or rows of them; the common case, in a quarter of the time."""
    if len(shape) == 2:
        if not set(map(type, value)) <= {list, tuple} or set(map(len, value)) != {shape[1]}:
            return False
        value = [*chain.from_iterable(value)]
    return set(map(type, value)) == {float}


def _as_array(values: list[object]) -> np.ndarray:
    try:
        array = np.array(values)
    except (ValueError, OverflowError):
        array = np.array(None)
    # Ints beyond 64 bits make it an array of objects.
    return array if array.dtype.kind in "fiu" else np.stack([np.asarray(value, np.float64) for value in values])


def _bad(path: Path, sample_id: int | str, found: str, expected: str) -> BadFile:
    return BadFile(
        path,
        found=f"{found} for sample {sample_id}",
        expected=expected,
        way_out="Check that it is a sample2detect_N.pth file, and fetch it again from its source.",
    )


Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
#: Small enough that Arrow gives the same memory again and again: new memory costs more than decoding.
_ROWS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class FaceTable:
    """The faces of n samples, m in all.

    Attributes:
        sample_ids: int64[n].
        offsets: int64[n + 1]; sample k has the faces offsets[k] … offsets[k + 1].
        boxes: float32[m, 4], x1 y1 x2 y2 in pixels.
        landmarks: float32[m, 10], five points x y.
        scores: float32[m].
    """

    sample_ids: Ints
    offsets: Ints
    boxes: Floats
    landmarks: Floats
    scores: Floats

    @classmethod
    def read(cls, path: Path, wanted: Ints | None = None) -> FaceTable:
        """Read faces/part-000NN.parquet, by ascending sample id.

        Args:
            wanted: the sample ids to keep, int64[k] ascending; None means all.

        Raises:
            BadFile: it is damaged.
        """
        with opened(path, buffer_size=1 << 20, pre_buffer=False) as file:
            table = _Filling.of(file)
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=["sample_id", "faces"], use_threads=False):
                table.add(batch, wanted)
            table.require(file.metadata.num_rows)
        return table.filled()

    def of_rows(self, sample_ids: Ints) -> RowFaces:
        """Return the faces of the rows with these ids, in their order; none where an id is not here."""
        if not len(self.sample_ids):
            return RowFaces(self, np.zeros(len(sample_ids), np.int64), np.zeros(len(sample_ids), np.int64))
        order = np.argsort(sample_ids)  # Neighbours are found in one stretch of memory.
        place = np.empty(len(sample_ids), np.int64)
        place[order] = np.searchsorted(self.sample_ids, sample_ids[order])
        place = np.minimum(place, len(self.sample_ids) - 1)
        there = self.sample_ids[place] == sample_ids
        starts = self.offsets[place]
        return RowFaces(self, starts, np.where(there, self.offsets[place + 1] - starts, 0))


class _Filling:
    """A table that is being read, in arrays of the largest size that it can have: memory is taken as it is filled."""

    def __init__(self, samples: int, faces: int) -> None:
        self._ids, self._counts = np.empty(samples, np.int64), np.empty(samples, np.int64)
        self._columns = (
            np.empty((faces, 4), np.float32),
            np.empty((faces, 10), np.float32),
            np.empty(faces, np.float32),
        )
        self._samples = self._faces = self._rows = 0

    @classmethod
    def of(cls, file: OpenParquet) -> _Filling:
        """Make an empty one for a whole file; a list without faces counts as one value of the last column."""
        return cls(file.metadata.num_rows, sum(group[-1].values for group in file.chunks))

    def add(self, batch: pa.RecordBatch, wanted: Ints | None) -> None:
        """Add the rows of `batch`, those with a `wanted` id."""
        ids, lists = batch.column("sample_id").to_numpy(), batch.column("faces")
        self._rows += len(ids)
        offsets = lists.offsets.to_numpy().astype(np.int64)
        counts, columns = np.diff(offsets), _flat(lists.flatten())
        if wanted is not None and not (keep := _among(ids, wanted)).all():
            places = _places((offsets[:-1] - offsets[0])[keep], counts[keep])
            boxes, landmarks, scores = (column[places] for column in columns)
            ids, counts, columns = ids[keep], counts[keep], (boxes, landmarks, scores)
        samples, faces = self._samples + len(ids), self._faces + len(columns[2])
        if samples > len(self._ids) or faces > len(self._columns[2]):
            raise pa.ArrowInvalid("more rows or faces than its footer says")
        self._ids[self._samples : samples], self._counts[self._samples : samples] = ids, counts
        for own, column in zip(self._columns, columns, strict=True):
            own[self._faces : faces] = column
        self._samples, self._faces = samples, faces

    def require(self, rows: int) -> None:
        """Check that all `rows` have been added."""
        if self._rows != rows:
            raise pa.ArrowInvalid(f"{self._rows} rows, its footer says {rows}")

    def filled(self) -> FaceTable:
        """Return the table of what has been read."""
        ids, counts = self._ids[: self._samples], self._counts[: self._samples]
        return FaceTable(ids, _starting_at_zero(counts), *(column[: self._faces] for column in self._columns))


@dataclass(frozen=True)
class RowFaces:
    """The faces of n rows of an index, as places in a table: they are gathered a row group at a time.

    Attributes:
        table: the faces of the part.
        starts: int64[n], where each row's faces start in it.
        counts: int64[n], how many faces each row has.
    """

    table: FaceTable
    starts: Ints
    counts: Ints

    @property
    def boxes(self) -> Floats:
        """The boxes of all rows, one row after the other: float32[m, 4]."""
        return self.table.boxes[_places(self.starts, self.counts)]

    def at(self, which: Ints) -> RowFaces:
        """Return the faces of some rows."""
        return RowFaces(self.table, self.starts[which], self.counts[which])

    def columns(self, start: int, stop: int) -> tuple[pa.Array, pa.Array, pa.Array, pa.Array]:
        """Give faces, n_faces, max_face_score, max_face_size of rows start … stop; without faces [], 0, null, null."""
        counts = self.counts[start:stop]
        places, offsets = _places(self.starts[start:stop], counts), _starting_at_zero(counts)
        boxes, landmarks, scores = (
            column[places] for column in (self.table.boxes, self.table.landmarks, self.table.scores)
        )
        points = FACE.field("landmarks").type
        pairs = pa.FixedSizeListArray.from_arrays(pa.array(landmarks.reshape(-1)), type=points.value_type)
        fields = [
            pa.FixedSizeListArray.from_arrays(pa.array(boxes.reshape(-1)), type=FACE.field("box").type),
            pa.FixedSizeListArray.from_arrays(pairs, type=points),
            pa.array(scores),
        ]
        faces = pa.StructArray.from_arrays(fields, fields=list(FACE))
        return (
            pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), faces, type=FACES),
            pa.array(counts.astype(np.int32)),
            _largest(scores, offsets, counts),
            _largest(_short_sides(boxes), offsets, counts),
        )


def flat_columns(faces: pa.ListArray) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Return n_faces, max_face_score, max_face_size of n rows' `schema.FACES`; 0, null, null where a row has none."""
    offsets = faces.offsets.to_numpy().astype(np.int64)
    boxes, _, scores = _flat(faces.flatten())
    offsets = offsets - offsets[0]
    counts = np.diff(offsets)
    return (
        pa.array(counts.astype(np.int32)),
        _largest(scores, offsets, counts),
        _largest(_short_sides(boxes), offsets, counts),
    )


def _among(ids: Ints, wanted: Ints) -> npt.NDArray[np.bool_]:
    """Tell which of `ids` are wanted; both ascend."""
    if not len(wanted):
        return np.zeros(len(ids), np.bool_)
    among: npt.NDArray[np.bool_] = wanted[np.minimum(np.searchsorted(wanted, ids), len(wanted) - 1)] == ids
    return among


def _flat(faces: pa.StructArray) -> tuple[Floats, Floats, Floats]:
    """Return boxes [m, 4], landmarks [m, 10] and scores [m] of a flat array of `schema.FACE`."""
    boxes = faces.field("box").flatten().to_numpy().reshape(-1, 4)
    landmarks = faces.field("landmarks").flatten().flatten().to_numpy().reshape(-1, 10)
    return boxes, landmarks, faces.field("score").to_numpy()


def _places(starts: Ints, counts: Ints) -> Ints:
    """Return the places of runs that start at `starts`, one run after the other."""
    offsets = np.cumsum(counts) - counts
    places: Ints = np.arange(counts.sum()) + np.repeat(starts - offsets, counts)
    return places


def _starting_at_zero(counts: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _short_sides(boxes: Floats) -> Floats:
    """Return min(x2 - x1, y2 - y1) of every box."""
    short: Floats = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    return short


def _largest(values: Floats, offsets: Ints, counts: Ints) -> pa.Array:
    """Return the largest value of each run, null for empty runs."""
    some = counts > 0
    result = np.zeros(len(counts), np.float32)
    if some.any():  # reduceat cannot do empty runs; left out, they change no other run.
        result[some] = np.maximum.reduceat(values, offsets[:-1][some])
    return pa.array(result, mask=~some)
