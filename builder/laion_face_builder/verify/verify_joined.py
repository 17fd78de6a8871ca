"""Verify the tables that were joined: every part of a side table against the index part that it lies beside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_face_builder.files import digest, read_fingerprint
from laion_face_builder.index.reader import index_fingerprint_at
from laion_face_builder.index.side_table import MATCHED_FIELD, side_tables
from laion_face_builder.layout import DataDir
from laion_face_builder.log import logger
from laion_face_builder.publish.published_files import columns_in
from laion_face_builder.shown import short
from laion_face_builder.verify.verify_data import BROKEN, opened, stamp_problems


def joined_problems(data: DataDir) -> Iterator[str]:
    """Yield what is wrong with the side tables of a DATA_DIR, a line each: the file, and what was found."""
    for parts in side_tables(data).values():
        columns: pa.Schema | None = None
        for part, path in parts.items():
            try:
                with opened(path) as file:
                    found = file.schema_arrow.remove_metadata()
                    yield from (f"{path}: {problem}" for problem in _problems(data, part, path, file))
            except BROKEN as error:
                yield f"{path}: cannot be read: {short(error)}"
                continue
            if columns is not None and found != columns:
                yield f"{path}: columns are {columns_in(found)}; expected those of the other parts beside it"
            columns = columns or found


def _problems(data: DataDir, part: int, path: Path, file: pq.ParquetFile) -> Iterator[str]:
    stamp = read_fingerprint(path) or {}
    yield from stamp_problems(stamp, "joined", part)
    index = index_fingerprint_at(data.index(part))
    if index is not None:
        if digest(index) != stamp.get("index"):
            logger.warning("%s: joined with another index than %s; what reads it joins it anew", path, data.index(part))
        elif (rows := pq.read_metadata(data.index(part)).num_rows) != file.metadata.num_rows:
            yield f"{file.metadata.num_rows} rows, but the index has {rows}"
    if list(file.schema_arrow)[:1] != [MATCHED_FIELD]:
        yield f"columns are {columns_in(file.schema_arrow)}; expected {MATCHED_FIELD.name} to be the first"
        return
    astray = unknown = 0
    for batch in file.iter_batches():
        matched, *columns = batch.columns
        unknown += matched.null_count
        for column in columns:
            astray += pc.sum(pc.and_(pc.invert(matched), column.is_valid())).as_py() or 0
    if unknown:
        yield f"{MATCHED_FIELD.name} is null in {unknown} rows"
    if astray:
        yield f"{astray} values in rows that the table has nothing for"
