"""Write a published file again without some of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.files import Fingerprint, stamped
from laion_face_builder.index.exclusion import Mask
from laion_face_builder.publish.published_files import cut
from laion_face_builder.publish.published_form import index_bounds, index_writer, writer_of


def rewrite_without(target: Path, file: pq.ParquetFile, gone: Mask, fingerprint: Fingerprint) -> None:
    """Write a published file again without some rows, in the form that it would be published in without them.

    Row groups of the index are cut anew, those with pictures keep what stays of theirs. One or two are in memory.

    Args:
        file: as it is published.
        gone: bool[n], of the file's rows.
        fingerprint: of the new file.
    """
    schema = stamped(file.schema_arrow.remove_metadata(), fingerprint)
    kept, writer_for = _kept_groups(file, gone), writer_of
    if "image" not in schema.names:
        kept, writer_for = cut(kept, schema, index_bounds(int((~gone).sum()))), index_writer
    with writer_for(target, schema) as writer:
        for table in kept:
            if table.num_rows:
                writer.write_table(table.cast(schema), row_group_size=table.num_rows)


def _kept_groups(file: pq.ParquetFile, gone: Mask) -> Iterator[pa.Table]:
    start = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group).replace_schema_metadata(None)
        stop = start + table.num_rows
        yield table.filter(pa.array(~gone[start:stop])) if gone[start:stop].any() else table
        start = stop
