"""Hold faces of many samples as flat columns, made from the shapes that detectors write.

Accepted is (box, landmarks, score) or {"box", "kps" or "landmarks", "score"}; box 4 and landmarks 5 x 2 numbers as
arrays, lists or tensors; score a number (batch-face, RetinaFace; newer versions of it give dicts). All must be finite.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from laion_face_builder.errors import BadFile
from laion_face_builder.index.ids import as_ids
from laion_face_builder.schema import DETECTIONS, FACE

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
        raise _bad(path, sample_id, f"a face with keys {sorted(map(str, face))}", "box, kps (or landmarks) and score")
    length = f" of {len(face)}" if isinstance(face, list | tuple) else ""
    raise _bad(path, sample_id, f"a face that is a {type(face).__name__}{length}", "(box, landmarks, score)")


def _stack(path: Path, name: str, values: list[object], owners: np.ndarray) -> np.ndarray:
    """Return `values`, one for each face, as one float32 array."""
    shape = (len(values), *_SHAPES[name])
    if not values:
        return np.empty(shape, np.float32)
    stacked = _numbers(values)
    if stacked is None or stacked.shape != shape:
        for owner, value in zip(owners, values, strict=True):
            single = _numbers(value)
            if single is None or single.shape != shape[1:]:
                found = f"{name} {value!r:.60}" if single is None else f"{name} of shape {single.shape}"
                raise _bad(path, int(owner), found, f"numbers of shape {shape[1:]}")
        stacked = np.stack([np.asarray(value, np.float64) for value in values])
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is reported as such
        return stacked.astype(np.float32)


def _numbers(values: object) -> np.ndarray | None:
    try:
        array = np.array(values)
    except (ValueError, OverflowError):
        return None
    return array if array.dtype.kind in "fiu" else None


def _bad(path: Path, sample_id: int | str, found: str, expected: str) -> BadFile:
    return BadFile(
        path,
        found=f"{found} for sample {sample_id}",
        expected=expected,
        way_out="Check that it is a sample2detect_N.pth file, and fetch it again from its source.",
    )
