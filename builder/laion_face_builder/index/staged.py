"""Stage metadata on its way to the index: the rows that some part wants, put in order by part.

By part, the rows of one part come straight from its file. Whole metadata says nothing of parts: one pass over all files
serves every part asked for. Each file's rows wait in a file of their own, so that a killed pass goes on with the next:

    staging/IDS-PARTS/00017.parquet   of metadata file 17: row groups of one part each, rows in the file's order

IDS is a digest of the id list, PARTS the parts in bits. A staged file carries the metadata file's SHA-256; all of them
are removed once the last part is written.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_face_builder.files import Fingerprint, digest, make_fingerprint, stamped, written_whole
from laion_face_builder.index.ids import PartIds
from laion_face_builder.index.metadata import ROW_SCHEMA, open_metadata
from laion_face_builder.layout import ALL_PARTS, DataDir
from laion_face_builder.parquet_files import damaged, opened
from laion_face_builder.parquet_footer import OpenParquet
from laion_face_builder.sources import data_store

#: The columns that wait: an index row without its part's number and faces.
STAGED = pa.schema([("part", pa.int16()), ("sample_id", pa.int64()), *ROW_SCHEMA])
_ROWS = pa.schema([field for field in STAGED if field.name != "part"])
#: Rows that are held before they are written; some 15 MB.
_MOST_HELD = 1 << 16
_NAME = re.compile(r"[0-9a-f]+-[0-9a-f]{8}")


def staged_fingerprint(ids: str, parts: Sequence[int], metadata: str) -> Fingerprint:
    """Name what a staged file is made from: the contents of the id list and of the metadata file, and the parts."""
    return make_fingerprint("staged", ids=ids, parts=list(parts), metadata=metadata)


def is_staged(data: DataDir, target: Path, ids: str, parts: Sequence[int], metadata: Callable[[], str | None]) -> bool:
    """Tell whether the rows of a metadata file wait already; its content is asked of `metadata` only if some do."""
    if not data_store.has(data, target) or (content := metadata()) is None:
        return False
    return data_store.fingerprint(data, target) == staged_fingerprint(ids, parts, content)


def staged_file(folder: Path, number: int) -> Path:
    """Name the file in which the rows of a metadata file wait."""
    return folder / f"{number:05d}.parquet"


def staging_folders(data: DataDir) -> list[Path]:
    """Name the folders in which rows wait."""
    return sorted({path.parent for path in data_store.below(data, data.staging) if _NAME.fullmatch(path.parent.name)})


def written_by_now(data: DataDir, is_written: Callable[[int], bool]) -> list[Path]:
    """Name the folders whose parts are all written, so that nothing waits there any more."""
    return [folder for folder in staging_folders(data) if all(map(is_written, parts_in(folder)))]


def staging_folder(data: DataDir, ids: str, parts: Sequence[int]) -> tuple[Path, tuple[int, ...]]:
    """Name the folder in which rows of `parts` wait, and the parts that wait there.

    A pass that was begun for more parts, some of which are written by now, is taken up again.
    """
    wanted = sum(1 << part for part in parts)
    start = f"{digest(ids)}-"
    for folder in staging_folders(data):
        if folder.name.startswith(start) and set(parts) <= set(there := parts_in(folder)):
            return folder, there
    return data.staging / f"{start}{wanted:08x}", tuple(sorted(parts))


def parts_in(folder: Path) -> tuple[int, ...]:
    """Say of which parts the rows wait in a folder, by its name."""
    bits = int(folder.name.rpartition("-")[2], 16)
    return tuple(part for part in ALL_PARTS if bits >> part & 1)


def rows_of_part(metadata: Path, ids: PartIds, threads: int) -> pa.Table:
    """Read the rows of a file whose ids are wanted, in the file's order; all of them are in memory, as for one part.

    Raises:
        BadFile: the metadata cannot be used.
    """
    batches = [batch for batch in _wanted(metadata, ids, threads) if batch.num_rows]
    return pa.Table.from_batches(batches, STAGED).select(_ROWS.names)


def stage(target: Path, metadata: Path, ids: PartIds, fingerprint: Fingerprint) -> int:
    """Write the rows of a metadata file that some part wants to `target`; return how many there are.

    Raises:
        BadFile: the metadata cannot be used.
    """
    rows = 0
    schema = stamped(STAGED, fingerprint)
    with written_whole(target) as partial, _writer(partial, schema) as writer:
        for table in _held(_wanted(metadata, ids, 1)):
            parts = table["part"].to_numpy()
            by_part = table.take(pa.array(np.argsort(parts, kind="stable"))).combine_chunks()
            stops = np.cumsum(np.bincount(parts))
            for start, stop in itertools.pairwise([0, *stops.tolist()]):
                if stop > start:
                    writer.write_table(by_part.slice(start, stop - start).cast(schema), row_group_size=stop - start)
            rows += table.num_rows
    return rows


def staged_rows(data: DataDir, files: Sequence[Path], part: int) -> pa.Table:
    """Read the rows of a part from staged files, in the order of the files."""
    tables = []
    for path in files:
        with (
            data_store.opened(data, path) as source,
            # From afar a row group comes in one request; here there is nothing to gather.
            opened(source, path, pre_buffer=source is not path) as file,
        ):
            groups = [group for group in range(file.num_row_groups) if _part_of(file, group) == part]
            table = file.read_row_groups(groups, columns=STAGED.names, use_threads=False)
            if table.num_rows != sum(file.metadata.row_group(group).num_rows for group in groups):
                raise damaged(path, "fewer rows than its footer says")
            if not pc.all(pc.equal(table["part"], part), min_count=0).as_py():
                raise damaged(path, f"rows of another part than {part} among those of it")
            tables.append(table.select(_ROWS.names))
    return pa.concat_tables([_ROWS.empty_table(), *(table.replace_schema_metadata(None) for table in tables)])


def _wanted(metadata: Path, ids: PartIds, threads: int) -> Iterator[pa.RecordBatch]:
    """Yield the wanted rows as in `STAGED`; a row that several parts want comes once for each."""
    for values, rows in open_metadata(metadata).batches(ids.maybe, threads):
        which, parts = ids.find(values)
        found = rows if len(which) == len(values) else rows.take(pa.array(which))
        yield pa.RecordBatch.from_arrays([pa.array(parts), pa.array(values[which]), *found.columns], schema=STAGED)


def _held(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Join batches to tables of many rows."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        if rows >= _MOST_HELD:
            yield pa.Table.from_batches(held)
            held, rows = [], 0
    if held:
        yield pa.Table.from_batches(held)


def _part_of(file: OpenParquet, group: int) -> int:
    stated = file.chunks[group][0].bounds
    if stated is None or stated[0] != stated[1]:
        raise pa.ArrowInvalid(f"row group {group} is not of one part")
    return stated[0]


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    how = {"use_dictionary": ["license", "nsfw"], "write_statistics": ["part"], "write_page_checksum": True}
    return pq.ParquetWriter(path, schema, compression="lz4", **how)
