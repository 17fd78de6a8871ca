"""Convert the faces of each sample: sample2detect_N.pth -> faces/part-000NN.parquet, sorted by sample_id.

The file holds a dict: sample id -> list of faces, each (box, landmarks, score) or a dict with box, kps and score; boxes
and landmarks as arrays, lists or tensors. Read in pieces; what is kept of a part are flat columns, 60 bytes a face.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.errors import BadFile, NotPrepared
from laion_face_builder.files import (
    Fingerprint,
    make_fingerprint,
    read_fingerprint,
    remove_partials,
    stamped,
    written_whole,
)
from laion_face_builder.index.face_stream import read_faces_of_piece
from laion_face_builder.index.faces import FaceColumns, FaceTable, from_items
from laion_face_builder.index.ids import KeptIds
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.log import logger
from laion_face_builder.parquet_files import opened
from laion_face_builder.schema import DETECTIONS
from laion_face_builder.torch_pickle.chunks import PIECE_SIZE, iter_pieces
from laion_face_builder.torch_pickle.unpickler import one_door
from laion_face_builder.values import Range

#: Small enough that a single id is found by reading one group of each part: about 1 MB.
ROWS_A_GROUP = 1 << 14
_ID = Range(int, -(1 << 63), (1 << 63) - 1)
#: Numbers near each other differ in their low bytes: split by byte, the high ones take a third of the room.
_FLOATS = (
    "faces.list.element.box.list.element",
    "faces.list.element.landmarks.list.element.list.element",
    "faces.list.element.score",
)


@dataclass(frozen=True)
class FoundFaces:
    """The faces of one sample.

    Attributes:
        sample_id: the sample.
        part: the part whose faces it is in.
        faces: dicts with box (4 floats), landmarks (5 pairs) and score.
    """

    sample_id: int
    part: int
    faces: list[dict[str, Any]]


def faces_fingerprint(part: int, source_version: str) -> Fingerprint:
    """Return what defines faces/part-000NN.parquet."""
    return make_fingerprint("faces", part=part, source=source_version)


def write_faces(pth: Path, data: DataDir, part: int, source_version: str, kept: KeptIds = None) -> None:
    """Write the part's faces. The caller holds the lock on the part.

    Raises:
        UnsafePickle, BadFile: `pth` is not a dict of faces; the message names the sample id.
    """
    target, fingerprint = data.faces(part), faces_fingerprint(part, source_version)
    # Only this part's: other parts may be written at this moment.
    remove_partials(target.parent, target.name)
    logger.info("reading the faces of part %d from %s", part, pth)
    columns = read_faces(pth)
    order = columns.order()
    order = order if kept is None else order[kept(part, columns.ids[order])]
    logger.info("part %d: %d samples, %d faces", part, len(order), int(columns.counts[order].sum()))
    with written_whole(target) as partial:
        _write(columns, order, stamped(DETECTIONS, fingerprint), partial)


def rewrite_faces(path: Path, keep: np.ndarray) -> None:
    """Write one of our files again with only those of its samples, bool[n], that are kept."""
    fingerprint, table = read_fingerprint(path), FaceTable.read(path)
    assert fingerprint is not None, "it is there"  # noqa: S101 - says it to the type checker
    counts, landmarks = np.diff(table.offsets), table.landmarks.reshape(-1, 5, 2)
    columns = FaceColumns(table.sample_ids, counts, table.boxes, landmarks, table.scores)
    with written_whole(path) as partial:
        _write(columns, np.flatnonzero(keep), stamped(DETECTIONS, fingerprint), partial)


def read_faces(pth: Path, piece_size: int = PIECE_SIZE) -> FaceColumns:
    """Read all faces of a file in its order; of an id that comes twice the last counts, as in a dict.

    Raises:
        UnsafePickle, BadFile: whatever is wrong with it.
    """
    with one_door(pth):
        return FaceColumns.concat(_pieces(pth, piece_size))


def _pieces(pth: Path, piece_size: int) -> Iterator[FaceColumns]:
    for piece in iter_pieces(pth, read_faces_of_piece, piece_size):
        yield piece.check(pth) if isinstance(piece, FaceColumns) else from_items(pth, piece)
        del piece  # before the next one is loaded


def faces_of(data: DataDir, sample_ids: Sequence[int]) -> Iterator[FoundFaces]:
    """Yield the faces of single samples, in the order asked for, from all prepared parts; unknown ids give nothing.

    Raises:
        OptionError: not a number that can be an id; NotPrepared: no part's faces have been prepared.
        BadFile: a file is not one of ours.
    """
    for sample_id in sample_ids:
        _ID.check("sample_id", sample_id)
    files = [(part, data.faces(part)) for part in ALL_PARTS if data.faces(part).exists()]
    if not files:
        raise NotPrepared(f"{data.root}: no faces are prepared there. Run `laion-face prepare` with this --data-dir.")
    wanted = np.unique(np.asarray(sample_ids, np.int64))
    found: dict[int, list[FoundFaces]] = {}
    for part, path in files:
        for sample_id, faces in _lookup(path, wanted):
            found.setdefault(sample_id, []).append(FoundFaces(sample_id, part, faces))
    for sample_id in sample_ids:
        yield from found.get(int(sample_id), ())


def _lookup(path: Path, wanted: np.ndarray) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yield (sample id, faces) of those in `wanted` (ascending) that are in one file."""
    with opened(path, pre_buffer=False) as file:
        if file.schema_arrow.names != DETECTIONS.names:
            raise BadFile(
                path,
                found=f"columns {file.schema_arrow.names}",
                expected=f"{DETECTIONS.names}",
                way_out="Move it away and run `laion-face prepare` again.",
            )
        for group in range(file.num_row_groups):
            stated = file.chunks[group][0].bounds
            start, stop = (0, len(wanted)) if stated is None else np.searchsorted(wanted, [stated[0], stated[1] + 1])
            if start == stop:
                continue
            ids = _int64(file.read_row_group(group, columns=["sample_id"])["sample_id"])
            rows = np.flatnonzero(np.isin(ids, wanted[start:stop]))
            if len(rows):
                faces = file.read_row_group(group, columns=["faces"])["faces"]
                # Not `take`, which imports pyarrow.compute.
                yield from ((int(ids[row]), faces[row].as_py()) for row in rows.tolist())


def _int64(column: pa.ChunkedArray) -> np.ndarray:
    # Not `to_numpy`, which imports pandas: most of a cold start.
    chunks = [np.frombuffer(c.buffers()[1], np.int64, len(c), c.offset * 8) for c in column.chunks]
    return np.concatenate([np.empty(0, np.int64), *chunks])


def _write(columns: FaceColumns, order: np.ndarray, schema: pa.Schema, path: Path) -> None:
    """Write the rows `order` of `columns` group by group, so that no second copy of all is made."""
    encodings = dict.fromkeys(_FLOATS, "BYTE_STREAM_SPLIT") | {"sample_id": "DELTA_BINARY_PACKED"}
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=False,
        column_encoding=encodings,
        write_statistics=["sample_id"],
        write_page_checksum=True,
    ) as writer:
        for start in range(0, len(order), ROWS_A_GROUP):
            group = columns.take(order[start : start + ROWS_A_GROUP])
            writer.write_table(pa.table(group.as_arrow(), schema=schema))
