"""What we read of footers ourselves is what pyarrow says of honest ones, and no damaged one ends the process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_face_builder.index.reader import IndexPart
from laion_face_builder.parquet_footer import OpenParquet

TABLE = pa.table(
    {
        "whole": pa.array([3, -7, None, 2**40], pa.int64()),
        "small": pa.array([5, 5, 5, 5], pa.int16()),
        "text": ["a", "bc", None, "ü" * 300],
        "lists": [[1.5], [], None, [2.5, 3.5]],
    }
)

WRITERS: dict[str, Callable[[Path], Any]] = {
    "pyarrow": lambda path: pq.write_table(TABLE, path),
    "pyarrow, with all there is": lambda path: pq.write_table(
        TABLE, path, row_group_size=2, compression="zstd", write_page_index=True, write_page_checksum=True
    ),
    "pyarrow, without statistics": lambda path: pq.write_table(TABLE, path, write_statistics=False),
    "nothing in it": lambda path: pq.write_table(TABLE.slice(0, 0), path),
    "many columns": lambda path: pq.write_table(pa.table({f"c{number}": [number] for number in range(3000)}), path),
    "polars": lambda path: pl.DataFrame(TABLE).write_parquet(path),
    "duckdb": lambda path: duckdb.from_arrow(TABLE).write_parquet(str(path)),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("as_file", [False, True], ids=["path", "file"])
def test_an_honest_footer_says_what_pyarrow_says(tmp_path: Path, writer: str, as_file: bool) -> None:
    path = tmp_path / "a.parquet"
    WRITERS[writer](path)
    with path.open("rb") as source, OpenParquet(source if as_file else path) as file:
        table = file.read()
        assert table.num_rows == pq.read_table(path).num_rows
        found = [[vars(column) for column in group] for group in file.chunks]
        expected = [
            [said_by_pyarrow(file.metadata.row_group(group).column(column)) for column in range(len(found[group]))]
            for group in range(file.num_row_groups)
        ]
    assert [[{**column, "codec": 0} for column in group] for group in found] == expected


def said_by_pyarrow(column: pq.ColumnChunkMetaData) -> dict[str, Any]:
    stated = column.statistics
    is_whole = stated is not None and stated.has_min_max and type(stated.min) is int
    return {
        "path": column.path_in_schema,
        "codec": 0,
        "values": column.num_values,
        "size": column.total_compressed_size,
        "bounds": (stated.min, stated.max) if is_whole else None,
        "nulls": stated.null_count if stated is not None and stated.has_null_count else None,
        "is_indexed": column.has_offset_index,
    }


#: Reads a file with one bit after the other flipped; the first argument says by whom its footer is looked at.
CHILD = """
import sys
from pathlib import Path
import pyarrow as pa
from laion_face_builder.errors import BadFile
from laion_face_builder.index.index_file import known_parts
from laion_face_builder.index.reader import IndexPart
from laion_face_builder.parquet_files import opened
who, path, bits = sys.argv[1], Path(sys.argv[2]), map(int, sys.argv[3:])
whole, named = path.read_bytes(), 0
for place in bits:
    changed = bytearray(whole)
    changed[place // 8] ^= 1 << place % 8
    path.write_bytes(changed)
    try:
        with opened(path) as file:
            if who == "pyarrow":
                group = file.metadata.row_group(0)
                [group.column(column).statistics for column in range(group.num_columns)]
            else:
                file.chunks, known_parts(file)
        with IndexPart.open(path) as part:
            part.row_groups, part.row_group_bytes, part.fingerprint, part.read(0, part.num_rows)
    except BadFile as error:
        assert path.name in str(error)
        named += 1
print(named)
"""


@pytest.fixture
def small_index(published: Any, tmp_path: Path) -> Path:
    """Write some rows of an index in one row group, for a footer of which each bit can be tried."""
    path = tmp_path / "part-00000.parquet"
    with IndexPart.open(published.folder / "data" / path.name) as part:
        pq.write_table(part.read(0, 10), path)
    return path


def tried(who: str, path: Path, places: list[int]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, who, str(path), *map(str, places)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_no_damaged_footer_ends_the_process(small_index: Path) -> None:
    whole = small_index.read_bytes()
    end = 8 * len(whole)
    footer = end - 64 - 8 * int.from_bytes(whole[-8:-4], "little")
    done = tried("ours", small_index, list(range(footer, end, 37)))
    assert done.returncode == 0, done.stderr[-500:]
    assert int(done.stdout) > 100


def test_a_footer_that_ends_pyarrow_is_read_or_named(small_index: Path) -> None:
    # The schema says of sample_id that it is never null: then its counts of nulls are too many.
    whole = small_index.read_bytes()
    optional = b"\x25\x02\x18\x09sample_id"
    at = 8 * (whole.index(optional, len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")) + 1) + 1
    done = tried("ours", small_index, [at])
    assert done.returncode == 0, done.stderr[-500:]
    small_index.write_bytes(whole)
    assert tried("pyarrow", small_index, [at]).returncode < 0
