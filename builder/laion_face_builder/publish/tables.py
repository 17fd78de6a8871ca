"""The tables that are published: their schemas, how they are written, and what is measured of them.

Files are written as the Hub's viewer needs them: with a page index and content-defined chunks (a page of 100 rows is
read without the rest of the row group, and a changed file is uploaded as its changed chunks), row groups in bounds, and
page checksums, by which `laion-face verify` finds a flipped bit.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_face_builder.errors import BadFile
from laion_face_builder.files import read_fingerprint, sha256_of
from laion_face_builder.publish.manifest import Entry
from laion_face_builder.schema import EXAMPLE_COLUMNS, INDEX

_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
_OWN = {
    "image": _IMAGE,
    "original_width": INDEX.field("width").type,
    "original_height": INDEX.field("height").type,
    "faces_aligned": pa.bool_(),
}
#: The columns that are derived from `faces`.
FLAT = ("n_faces", "max_face_score", "max_face_size")
#: A published table with pictures: an example's columns, and the flat ones of its faces. A missing picture is a null.
EXAMPLES = pa.schema([pa.field(name, _OWN.get(name) or INDEX.field(name).type) for name in (*EXAMPLE_COLUMNS, *FLAT)])

#: The viewer scans whole row groups of at most 300 MB.
MOST_ROW_GROUP_BYTES = 300_000_000
#: pyarrow's default would make pages of pictures that have 20 MB.
_ROWS_A_PAGE_OF_PICTURES = 16


def writer_of(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a writer with all that the viewer needs; zstd finds out by itself that pictures are compressed already."""
    pictures = {"write_batch_size": _ROWS_A_PAGE_OF_PICTURES} if "image" in schema.names else {}
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        write_page_index=True,
        use_content_defined_chunking=True,
        write_page_checksum=True,
        **pictures,
    )


def measured(path: Path, name: str, part: int, rows: tuple[int, int]) -> Entry:
    """Read the whole file and make its entry for the manifest.

    Args:
        name: under which the file is published.
        rows: first and stop of the index rows that it covers.

    Raises:
        BadFile: it cannot be read, or has no fingerprint.
    """
    fingerprint = read_fingerprint(path)
    hasher, arrow_bytes = hashlib.sha256(), 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                arrow_bytes += table.nbytes
                hasher.update(ids_bytes(table["sample_id"]))
            count, groups = file.metadata.num_rows, file.num_row_groups
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise BadFile(
            path,
            found=" ".join(str(error).split())[:200],
            expected="a whole Parquet file",
            way_out="Move it away and run `laion-face prepare` again.",
        ) from error
    size = path.stat().st_size
    return Entry(
        name, part, count, *rows, groups, size, arrow_bytes, sha256_of(path), hasher.hexdigest(), fingerprint or {}
    )


def ids_bytes(column: pa.ChunkedArray | pa.Array) -> bytes:
    """Give sample ids as their digest takes them: little-endian int64, a null as -1."""
    values = column.fill_null(-1).to_numpy()
    return np.ascontiguousarray(values).astype("<i8").tobytes()


def viewer_faults(path: Path) -> list[str]:
    """List what keeps the Hub's viewer from reading the file page by page; [] if nothing does. Read only the footer."""
    metadata = pq.read_metadata(path)
    faults = []
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        if row_group.total_byte_size > MOST_ROW_GROUP_BYTES:
            faults.append(f"row group {group} has {row_group.total_byte_size} bytes, {MOST_ROW_GROUP_BYTES} are most")
        columns = [row_group.column(number) for number in range(row_group.num_columns)]
        without = [column.path_in_schema for column in columns if not column.has_offset_index]
        if without:
            faults.append(f"row group {group} has no page index for {', '.join(without)}")
    return faults
