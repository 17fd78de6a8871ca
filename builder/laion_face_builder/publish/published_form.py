"""The form of published Parquet files: what readers from afar need, as the Hub's viewer, `datasets` and pandas.

- A page index and content-defined chunks: a page of 100 rows is read without the rest of the row group, and a changed
  file is uploaded as its changed chunks. A key in the file's metadata says that there are such chunks; by it the Hub's
  viewer takes a file for "optimized Parquet" (dataset-viewer, PR 3378). pyarrow makes them, and writes no key.
- Page checksums, by which `laion-face verify` finds a flipped bit.
- Few row groups of the index: whoever wants one column asks for a piece of each row group, and fsspec fetches megabytes
  more than each piece. Not fewer, since our own reader and `datasets` fetch whole row groups.
- Short pages of pictures: of those that a page of 100 rows touches, the first and the last are partly for nothing.

The form says nothing of the rows, and is no part of what `IndexPart` gives as their fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.files import FORM_KEY, Fingerprint
from laion_face_builder.index.writer import open_writer
from laion_face_builder.layout import row_group_bounds
from laion_face_builder.parquet_footer import ColumnChunk

#: Raised when files of another form are made of the same rows. 1 was before there was a number.
FORM = 2
#: How many row groups a published part of the index has: see benchmarks/README.md.
INDEX_GROUPS = 32
#: The key by which the Hub's viewer knows that there are content-defined chunks.
CHUNKING_KEY = b"use_content_defined_chunking"
#: The viewer scans whole row groups of at most 300 MB.
MOST_ROW_GROUP_BYTES = 300_000_000
Chunks = Mapping[str, int]
#: How many bytes a chunk has before compression: a half and a quarter of pyarrow's own, for shorter pages.
_CHUNKS: Chunks = {"min_chunk_size": 128 << 10, "max_chunk_size": 512 << 10, "norm_level": 0}
_CHUNKS_OF_PICTURES: Chunks = {"min_chunk_size": 64 << 10, "max_chunk_size": 256 << 10, "norm_level": 0}
#: A page ends where a batch does, or a chunk: pyarrow's default would make pages of pictures that have 20 MB.
_ROWS_A_BATCH_OF_PICTURES = 16


def index_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a writer for rows of the index, and columns beside it."""
    return open_writer(path, _keyed(schema, _CHUNKS), _CHUNKS)


def writer_of(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a writer for rows with pictures; zstd finds out by itself that these are compressed already."""
    return pq.ParquetWriter(
        path,
        _keyed(schema, _CHUNKS_OF_PICTURES),
        compression="zstd",
        write_page_index=True,
        use_content_defined_chunking=dict(_CHUNKS_OF_PICTURES),
        write_page_checksum=True,
        write_batch_size=_ROWS_A_BATCH_OF_PICTURES,
    )


def _keyed(schema: pa.Schema, chunks: Chunks) -> pa.Schema:
    return schema.with_metadata({**(schema.metadata or {}), CHUNKING_KEY: json.dumps(chunks).encode()})


def index_bounds(rows: int) -> list[tuple[int, int]]:
    """Return start and end row of each row group of a published part with so many rows."""
    return row_group_bounds(rows, INDEX_GROUPS)


def in_form(fingerprint: Fingerprint) -> Fingerprint:
    """Add to a fingerprint of rows that they are published in this form."""
    return {**fingerprint, FORM_KEY: FORM}


def is_in_form(fingerprint: Fingerprint) -> bool:
    """Say whether a file with this fingerprint was published in the form of this version."""
    return fingerprint.get(FORM_KEY) == FORM


def form_faults(metadata: pq.FileMetaData, chunks: list[list[ColumnChunk]], is_index: bool) -> Iterator[str]:
    """Yield what of a file is not in this form, a line each; nothing if all is. The footer says it."""
    if CHUNKING_KEY not in (metadata.metadata or {}):
        yield f"has no key {CHUNKING_KEY.decode()}, by which the Hub's viewer takes it for optimized Parquet"
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups if group.num_rows]
    if is_index and rows != [stop - start for start, stop in index_bounds(metadata.num_rows)]:
        yield f"{len(rows)} row groups of {min(rows)} to {max(rows)} rows; expected {INDEX_GROUPS} even ones"
    for number, (group, columns) in enumerate(zip(groups, chunks, strict=True)):
        if group.total_byte_size > MOST_ROW_GROUP_BYTES:
            yield f"row group {number} has {group.total_byte_size} bytes, {MOST_ROW_GROUP_BYTES} are most"
        if without := [column.path for column in columns if not column.is_indexed]:
            yield f"row group {number} has no page index for {', '.join(without)}"
