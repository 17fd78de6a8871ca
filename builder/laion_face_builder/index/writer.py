"""The one table: ids, faces and metadata of a part joined into index/part-000NN.parquet."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from laion_face_builder.errors import BadFile
from laion_face_builder.files import Fingerprint, make_fingerprint, stamped, written_whole
from laion_face_builder.index.faces import FaceTable
from laion_face_builder.index.ids import read_ids
from laion_face_builder.index.metadata import BATCH_ROWS, MetadataFile, open_metadata
from laion_face_builder.layout import row_group_bounds
from laion_face_builder.schema import INDEX

logger = logging.getLogger("laion_face")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class IndexInputs:
    """What an index part is made of: files, and the versions of the upstream files behind them."""

    part: int
    ids: Path
    faces: Path
    metadata: Path
    fingerprint: Fingerprint


def index_fingerprint(part: int, *, ids: str, faces: str, metadata: str) -> Fingerprint:
    """The fingerprint of an index part made from upstream files of these versions."""
    return make_fingerprint("index", part=part, ids=ids, faces=faces, metadata=metadata)


def write_index(target: Path, inputs: IndexInputs) -> int:
    """Writes the index part to `target`; gives its number of rows.

    Two passes over the metadata: its ids alone, to know the row groups, then its rows. In memory are the part's ids and
    faces, a batch of metadata and a row group: 0.75 GB for a full part.

    Raises:
        BadFile: the metadata cannot be used.
    """
    metadata, ids = open_metadata(inputs.metadata), read_ids(inputs.ids)
    rows = _count(metadata, ids, inputs.part)
    faces = FaceTable.read(inputs.faces)
    schema = stamped(INDEX, inputs.fingerprint)
    with written_whole(target) as partial, _writer(partial, schema) as writer:
        groups = _in_groups(_rows(metadata, ids, inputs.part), row_group_bounds(rows), metadata.path)
        for table in groups:
            writer.write_table(_with_faces(table, faces).cast(schema), row_group_size=max(table.num_rows, 1))
    return rows


def _count(metadata: MetadataFile, ids: Ints, part: int) -> int:
    """Rows whose id is in `ids`; says what is odd about them."""
    rows, seen = 0, np.zeros(len(ids), np.bool_)
    for batch in metadata.sample_ids():
        values = batch.values[batch.valid]
        found = np.searchsorted(ids, values[_contained(ids, values)])
        seen[found] = True
        rows += len(found)
    distinct = int(seen.sum())
    logger.info("part %d: %d of %d ids are in the metadata", part, distinct, len(ids))
    if rows > distinct:
        logger.warning("part %d: %d metadata rows repeat the id of another; all are kept", part, rows - distinct)
    if not rows:
        logger.warning("part %d: none of its %d ids is in %s: is it another part's?", part, len(ids), metadata.path)
    return rows


def _rows(metadata: MetadataFile, ids: Ints, part: int) -> Iterator[pa.Table]:
    """The index's rows without faces, batch by batch, in the metadata's order."""
    with tqdm(
        total=metadata.num_rows,
        unit="row",
        unit_scale=True,
        desc=f"part {part}: index",
        leave=False,
        disable=None,
        file=sys.stderr,
    ) as bar:
        for values, batch in metadata.batches(lambda found: _contained(ids, found)):
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            columns |= {"sample_id": pa.array(values), "part": pa.array(np.full(len(values), part, np.int16))}
            yield pa.table({name: columns[name] for name in INDEX.names if name in columns})
            bar.update(min(BATCH_ROWS, metadata.num_rows - bar.n))


def _in_groups(tables: Iterator[pa.Table], bounds: Sequence[tuple[int, int]], file: Path) -> Iterator[pa.Table]:
    """The same rows, cut at `bounds`.

    Raises:
        BadFile: there are fewer or more rows than that: `file` has changed since they were counted.
    """
    held: list[pa.Table] = []
    rows = 0
    for start, stop in bounds:
        while rows < stop - start:
            if (more := next(tables, None)) is None:
                raise _changed(file)
            held.append(more)
            rows += held[-1].num_rows
        table = pa.concat_tables(held)
        yield table.slice(0, stop - start).combine_chunks()
        held, rows = [table.slice(stop - start)], rows - (stop - start)
    if rows + sum(table.num_rows for table in tables):
        raise _changed(file)


def _changed(file: Path) -> BadFile:
    return BadFile(
        file,
        found="other rows than at the first reading",
        expected="a file that stays as it is",
        way_out="Run it again once nobody writes to the file any more.",
    )


def _with_faces(table: pa.Table, faces: FaceTable) -> pa.Table:
    ids = table["sample_id"].to_numpy()
    for name, column in zip(
        ("faces", "n_faces", "max_face_score", "max_face_size"), faces.columns_for(ids), strict=True
    ):
        table = table.append_column(name, column)
    return table


def _contained(ids: Ints, values: Ints) -> npt.NDArray[np.bool_]:
    """Which of `values` are in the sorted `ids`."""
    if not len(ids):
        return np.zeros(len(values), np.bool_)
    place = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
    found: npt.NDArray[np.bool_] = ids[place] == values
    return found


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    how = {"write_page_index": True, "use_content_defined_chunking": True, "write_page_checksum": True}
    return pq.ParquetWriter(path, schema, compression="zstd", **how)
