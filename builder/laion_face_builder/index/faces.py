"""The faces part in memory, as flat arrays, to be joined to rows by sample id.

The metadata's order is random with respect to the ids, so all of a part's faces have to be at hand: about 0.2 GB.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.schema import FACE, FACES

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FaceTable:
    """Faces of a part.

    Attributes:
        sample_ids: int64[s], sorted.
        offsets: int64[s + 1]; sample k has the faces offsets[k] … offsets[k + 1].
        faces: StructArray[f] of `schema.FACE`.
        scores: float32[f]. sizes: float32[f], the short side of each box in pixels.
    """

    sample_ids: Ints
    offsets: Ints
    faces: pa.StructArray
    scores: npt.NDArray[np.float32]
    sizes: npt.NDArray[np.float32]

    @classmethod
    def read(cls, path: Path) -> FaceTable:
        """All faces of faces/part-000NN.parquet."""
        ids: list[Ints] = []
        lengths: list[Ints] = []
        faces: list[pa.Array] = []
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            for batch in file.iter_batches(1 << 16, columns=["sample_id", "faces"]):
                lists = batch.column("faces")
                ids.append(batch.column("sample_id").to_numpy())
                lengths.append(np.diff(lists.offsets.to_numpy()).astype(np.int64))
                faces.append(lists.flatten())
        flat = pa.concat_arrays(faces) if faces else pa.array([], FACE)
        counts = _joined(lengths)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return cls(_joined(ids), offsets, flat, flat.field("score").to_numpy(), _short_sides(flat))

    def columns_for(self, sample_ids: Ints) -> tuple[pa.Array, pa.Array, pa.Array, pa.Array]:
        """faces, n_faces, max_face_score, max_face_size of these ids' rows; [], 0, null, null where there are none."""
        starts, counts = self._find(sample_ids)
        ends = np.cumsum(counts)
        offsets = np.concatenate([np.zeros(1, np.int64), ends])
        which = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
        lists = pa.ListArray.from_arrays(
            pa.array(offsets.astype(np.int32)), self.faces.take(pa.array(which)), type=FACES
        )
        return (
            lists,
            pa.array(counts.astype(np.int32)),
            _largest(self.scores[which], offsets, counts),
            _largest(self.sizes[which], offsets, counts),
        )

    def _find(self, sample_ids: Ints) -> tuple[Ints, Ints]:
        """Where each id's faces start, and how many there are."""
        if not len(self.sample_ids):
            return np.zeros(len(sample_ids), np.int64), np.zeros(len(sample_ids), np.int64)
        place = np.minimum(np.searchsorted(self.sample_ids, sample_ids), len(self.sample_ids) - 1)
        there = self.sample_ids[place] == sample_ids
        return self.offsets[place], np.where(there, self.offsets[place + 1] - self.offsets[place], 0)


def flat_columns(faces: pa.ListArray) -> tuple[pa.Array, pa.Array, pa.Array]:
    """n_faces, max_face_score, max_face_size of n rows' `schema.FACES`; 0, null, null where a row has none."""
    offsets = faces.offsets.to_numpy().astype(np.int64)
    flat, counts = faces.flatten(), np.diff(offsets)
    scores, sizes = flat.field("score").to_numpy(), _short_sides(flat)
    offsets = offsets - offsets[0]
    return pa.array(counts.astype(np.int32)), _largest(scores, offsets, counts), _largest(sizes, offsets, counts)


def _joined(arrays: list[Ints]) -> Ints:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)


def _short_sides(faces: pa.StructArray) -> npt.NDArray[np.float32]:
    """min(x2 - x1, y2 - y1) of every box, in float32 as the boxes are."""
    boxes = faces.field("box").flatten().to_numpy().reshape(-1, 4)
    short: npt.NDArray[np.float32] = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    return short


def _largest(values: npt.NDArray[np.float32], offsets: Ints, counts: Ints) -> pa.Array:
    """The largest value of each run, null for empty runs."""
    some = counts > 0
    result = np.zeros(len(counts), np.float32)
    if some.any():  # reduceat cannot do empty runs, and those between others take no place.
        result[some] = np.maximum.reduceat(values, offsets[:-1][some])
    return pa.array(result, mask=~some)
