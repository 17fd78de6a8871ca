"""Write a published file again without some of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.files import Fingerprint, stamped
from laion_face_builder.index.exclusion import Mask
from laion_face_builder.index.writer import open_writer
from laion_face_builder.layout import row_group_bounds
from laion_face_builder.publish.published_files import cut, writer_of
from laion_face_builder.schema import INDEX


def rewrite_without(target: Path, file: pq.ParquetFile, gone: Mask, fingerprint: Fingerprint) -> None:
    """Write a published file again without some rows, in the form that it would be published in without them.

    Row groups of the index are cut anew, those with pictures keep what stays of theirs. One or two are in memory.

    Args:
        file: as it is published.
        gone: bool[n], of the file's rows.
        fingerprint: of the new file.
    """
    schema = stamped(file.schema_arrow.remove_metadata(), fingerprint)
    kept = _kept_groups(file, gone)
    is_plain = schema.names == INDEX.names and "filters" not in fingerprint
    if "image" not in schema.names:
        bounds = row_group_bounds(int((~gone).sum())) or ([(0, 0)] if is_plain else [])
        kept = cut(kept, schema, bounds)
    opened_writer = open_writer(target, schema) if is_plain else writer_of(target, schema)
    with opened_writer as writer:
        for table in kept:
            if table.num_rows or "image" not in schema.names:
                writer.write_table(table.cast(schema), row_group_size=max(table.num_rows, 1))


def _kept_groups(file: pq.ParquetFile, gone: Mask) -> Iterator[pa.Table]:
    start = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group).replace_schema_metadata(None)
        stop = start + table.num_rows
        yield table.filter(pa.array(~gone[start:stop])) if gone[start:stop].any() else table
        start = stop
